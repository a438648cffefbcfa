//! The engine: the image store, and the launcher that starts containers.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::sync::{Mutex, PoisonError};

use sbxrt_image::{Image, PullOptions, Source, Store};
use sbxrt_runtime::Launcher;

use crate::error::{Error, Result};
use crate::sandbox::SandboxBuilder;

/// Owns an image store and starts containers. Cheap to clone; all clones share one launcher process, which is started
/// with the first execution and ends, with everything that it runs, when the last clone and the last sandbox of them
/// are dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    store: Arc<Store>,
    launcher: Arc<Lazy>,
}

/// The launcher, once it is needed.
#[derive(Debug, Default)]
pub(crate) struct Lazy {
    started: OnceLock<Launcher>,
    starting: Mutex<()>,
}

impl Lazy {
    /// The launcher, started now if it was not before.
    pub(crate) fn get(&self) -> Result<&Launcher> {
        // Two first executions at once must not start two launchers.
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.started.get().is_none() {
            let launcher = Launcher::spawn()?;
            return Ok(self.started.get_or_init(|| launcher));
        }
        self.started
            .get()
            .ok_or_else(|| sbxrt_runtime::Error::LauncherGone.into())
    }
}

impl Engine {
    /// Opens the engine on the image store in the directory `store`, which is made (mode 0700) where it is missing.
    ///
    /// # Errors
    ///
    /// Fails where the directory cannot be made or holds something else.
    pub fn open(store: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::with_store(Store::open(store.as_ref())?))
    }

    /// Makes an engine on a store that was opened before, such as one with additional stores.
    pub fn with_store(store: Store) -> Self {
        Self {
            store: Arc::new(store),
            launcher: Arc::default(),
        }
    }

    /// Opens the engine on the store that the command line uses by default: `.local/share/sbxrt` in the home
    /// directory that the user database names for this process's user.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), and where the user has no entry in the database.
    pub fn open_default() -> Result<Self> {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .map_err(|error| Error::io("look up the user")(error.into()))?
            .ok_or_else(|| {
                Error::invalid(
                    "user",
                    "has no entry in the user database; use Engine::open",
                )
            })?;
        Self::open(user.dir.join(".local/share/sbxrt"))
    }

    /// Starts the launcher process now instead of with the first execution: it gets itself ready while the caller looks
    /// for an image.
    ///
    /// # Errors
    ///
    /// Fails where [`init`](crate::init) was not called or the host does not allow user namespaces.
    pub fn warm_up(&self) -> Result<()> {
        self.launcher.get().map(drop)
    }

    /// The image store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The image that `name` names: from the store where it is there, else fetched for this machine's platform.
    ///
    /// # Errors
    ///
    /// Fails where the name cannot be understood or the image cannot be fetched and verified.
    pub async fn pull(&self, name: &str) -> Result<Image> {
        let source: Source = name.parse()?;
        let options = PullOptions::default();
        Ok(self.store.find_or_pull(&source, &options, &()).await?)
    }

    /// Begins a sandbox of `image`: closed in every respect until it is opened.
    pub fn sandbox(&self, image: &Image) -> SandboxBuilder {
        SandboxBuilder::new(Arc::clone(&self.launcher), image.clone())
    }
}
