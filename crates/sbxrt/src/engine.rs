//! The engine: the image store, and the launchers that start containers.

use std::path::Path;
use std::sync::Arc;

use sbxrt_image::{Image, PullOptions, Source, Store};

use crate::admission::{Admission, Concurrency};
use crate::error::{Error, Result};
use crate::launchers::Launchers;
use crate::sandbox::SandboxBuilder;

/// Owns an image store and starts containers. Cheap to clone; all clones share its launcher processes. The first is started
/// with the first execution, further ones when there are several executions at once. They end, with everything that they
/// run, when the last clone and the last sandbox of them are dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    store: Arc<Store>,
    works: Arc<Works>,
}

/// What the executions of an engine share.
#[derive(Debug)]
pub(crate) struct Works {
    pub(crate) launchers: Launchers,
    pub(crate) admission: Admission,
}

/// What can be settled about an [`Engine`] before it is opened.
///
/// ```no_run
/// # fn main() -> sbxrt::Result<()> {
/// use sbxrt::{Concurrency, Engine};
///
/// let engine = Engine::builder().concurrency(Concurrency::AtMost(200)).open("/var/lib/judge")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until the engine is opened"]
pub struct EngineBuilder {
    launchers: Option<usize>,
    concurrency: Concurrency,
}

impl EngineBuilder {
    /// Sets how many launcher processes there may be, at least one. Default: as many as there are processors for this
    /// process. Each takes a few MiB and is started only when all others have something to do. When one is killed, what the
    /// others run goes on.
    pub fn launchers(mut self, most: usize) -> Self {
        self.launchers = Some(most);
        self
    }

    /// Sets how many executions may be under way at once; more wait for their turn. Default: as many as fit.
    ///
    /// This is about [`Command::output`](crate::Command::output) and
    /// [`Command::spawn_in_turn`](crate::Command::spawn_in_turn). [`Command::spawn`](crate::Command::spawn) neither waits
    /// nor counts.
    pub fn concurrency(mut self, concurrency: Concurrency) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// As [`Engine::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Engine::open`].
    pub fn open(self, store: impl AsRef<Path>) -> Result<Engine> {
        Ok(self.with_store(Store::open(store.as_ref())?))
    }

    /// As [`Engine::open_default`].
    ///
    /// # Errors
    ///
    /// Those of [`Engine::open_default`].
    pub fn open_default(self) -> Result<Engine> {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .map_err(|error| Error::io("look up the user")(error.into()))?
            .ok_or_else(|| {
                Error::invalid(
                    "user",
                    "has no entry in the user database; use Engine::open",
                )
            })?;
        self.open(user.dir.join(".local/share/sbxrt"))
    }

    /// As [`Engine::with_store`].
    pub fn with_store(self, store: Store) -> Engine {
        let launchers = self.launchers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        Engine {
            store: Arc::new(store),
            works: Arc::new(Works {
                launchers: Launchers::new(launchers),
                admission: Admission::new(self.concurrency),
            }),
        }
    }
}

impl Engine {
    /// Begins an engine that is not as [`open`](Self::open) makes it.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// Opens the engine on the image store in the directory `store`, which is made (mode 0700) where it is missing.
    ///
    /// # Errors
    ///
    /// Fails where the directory cannot be made or holds something else.
    pub fn open(store: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(store)
    }

    /// Makes an engine on a store that was opened before, such as one with additional stores.
    pub fn with_store(store: Store) -> Self {
        Self::builder().with_store(store)
    }

    /// Opens the engine on the store that the command line uses by default: `.local/share/sbxrt` in the home
    /// directory that the user database names for this process's user.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), and where the user has no entry in the database.
    pub fn open_default() -> Result<Self> {
        Self::builder().open_default()
    }

    /// Starts the first launcher process now instead of with the first execution: it gets itself ready while the caller looks
    /// for an image.
    ///
    /// # Errors
    ///
    /// Fails where [`init`](crate::init) was not called or the host does not allow user namespaces.
    pub fn warm_up(&self) -> Result<()> {
        self.works.launchers.warm_up()
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
        SandboxBuilder::new(Arc::clone(&self.works), image.clone())
    }
}
