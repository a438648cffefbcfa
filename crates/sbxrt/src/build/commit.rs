//! A command in an image, and the image that it makes of it.

use sbxrt_image::{Image, Platform, PullOptions, Rootfs, Source};
use sbxrt_runtime::{Limits, Network};

use super::copy::Base;
use super::execute::record;
use super::run::{Program, run};
use super::state::{State, rfc3339};
use super::{BuildProgress, PullPolicy, blocking, build_limits, now};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Says what to run in which image, and what the new image is to be like.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// The image to begin with.
    pub image: Source,
    /// When it is fetched. Default: where it is missing.
    pub pull: PullPolicy,
    /// How it is fetched.
    pub pull_options: PullOptions,
    /// The names of the new image.
    pub tags: Vec<Source>,
    /// What to run. Empty changes only the configuration.
    pub command: Vec<String>,
    /// Environment variables, for the command and in the new image.
    pub env: Vec<(String, String)>,
    /// The working directory, for the command and in the new image.
    pub working_directory: Option<String>,
    /// The user of the new image; the command is run as root.
    pub user: Option<String>,
    /// The entry point of the new image. Default: that of the old one. Without words: none.
    pub entrypoint: Option<Vec<String>>,
    /// The default arguments of the new image. Default: those of the old one. Without words: none.
    pub cmd: Option<Vec<String>>,
    /// Labels to add.
    pub labels: Vec<(String, String)>,
    /// What the history says of it.
    pub message: Option<String>,
    /// The network of the command. Default: none.
    pub network: Network,
    /// Whether the command may pretend to be root. Default: yes.
    pub emulate_root: bool,
    /// What the command may use. Default: as for a build.
    pub limits: Limits,
    /// As for a build.
    pub created: Option<i64>,
}

impl CommitOptions {
    /// Runs `command` in `image`, with the defaults.
    pub fn new<S: Into<String>>(image: Source, command: impl IntoIterator<Item = S>) -> Self {
        Self {
            image,
            pull: PullPolicy::default(),
            pull_options: PullOptions::default(),
            tags: Vec::new(),
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            working_directory: None,
            user: None,
            entrypoint: None,
            cmd: None,
            labels: Vec::new(),
            message: None,
            network: Network::None,
            emulate_root: true,
            limits: build_limits(),
            created: None,
        }
    }
}

pub(crate) async fn commit(
    engine: &Engine,
    options: &CommitOptions,
    progress: &dyn BuildProgress,
) -> Result<Image> {
    let store = std::sync::Arc::new(engine.store().clone());
    let opened = std::sync::Arc::clone(&store);
    let _guard = blocking(move || Ok(opened.begin_assembly()?)).await?;
    let pulling = &options.pull_options;
    let image = match options.pull {
        PullPolicy::Always if !pulling.offline => {
            store.pull(&options.image, pulling, progress.pull()).await?
        }
        PullPolicy::Missing | PullPolicy::Always => {
            store
                .find_or_pull(&options.image, pulling, progress.pull())
                .await?
        }
        PullPolicy::Never => store
            .find(&options.image, &pulling.platform)?
            .ok_or_else(|| Error::NotPresent {
                name: options.image.to_string(),
            })?,
    };
    if !matches!(image.rootfs, Rootfs::Layers(_)) {
        return Err(Error::invalid(
            "image",
            format!(
                "{} is not made of layers; build on it by a Dockerfile with FROM",
                image.name
            ),
        ));
    }
    let platform = Platform::host();
    let mut state = State::of_image(image.config.clone(), store.assembled_layers(&image)?);
    for (name, value) in &options.env {
        crate::sandbox::check_environment(name, value)?;
        state.set_env(name, value);
    }
    if let Some(directory) = &options.working_directory {
        let directory = state.absolute(directory);
        state.edit(|config| {
            config.set_working_dir(Some(directory));
        });
    }
    let created = rfc3339(options.created.unwrap_or_else(now));
    let mut layer = None;
    if !options.command.is_empty() {
        // What is to be changed in an image is usually root's.
        let mut running = state.clone();
        running.edit(|config| {
            config.set_user(None);
        });
        let runnable = store.assembled("commit", &platform, &running.config, &running.layers);
        let Rootfs::Layers(layers) = &runnable.rootfs else {
            return Err(Error::invalid("image", "is not made of layers"));
        };
        let base = Base {
            layers: layers.clone(),
            chain_id: state.chain_id().cloned(),
            latest: options.created,
            created: created.clone(),
            use_cache: false,
        };
        let program = Program {
            words: options.command.clone(),
            script: None,
            env: Vec::new(),
            network: options.network,
            emulate_root: options.emulate_root,
            limits: options.limits.clone(),
        };
        layer = run(engine, &runnable, &program, &base, progress).await?;
    }
    state.edit(|config| {
        if let Some(user) = &options.user {
            config.set_user(Some(user.clone()));
        }
        let words = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
        if let Some(entrypoint) = &options.entrypoint {
            config.set_entrypoint(words(entrypoint));
        }
        if let Some(cmd) = &options.cmd {
            config.set_cmd(words(cmd));
        }
        if !options.labels.is_empty() {
            let mut labels = config.labels().clone().unwrap_or_default();
            labels.extend(options.labels.iter().cloned());
            config.set_labels(Some(labels));
        }
    });
    let text = match &options.message {
        Some(message) => message.clone(),
        None => format!("sbxrt commit -- {}", options.command.join(" ")),
    };
    state.note(&text, layer, Some(&created));
    record(&store, &options.tags, &platform, &state).await
}
