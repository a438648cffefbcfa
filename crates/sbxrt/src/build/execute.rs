//! A plan, carried out step by step.

use std::collections::BTreeSet;
use std::sync::Arc;

use sbxrt_image::{CachedStep, Image, Platform, Rootfs, Source, Store};
use sbxrt_runtime::Network;

use super::cache::key;
use super::context::{Context, read_bounded, read_within};
use super::copy::{Base, CopyWork, Root};
use super::dockerfile::{
    CommandLine, CopyInstruction, Dockerfile, DockerfileError, Heredoc, Instruction,
    InstructionKind, MAXIMUM_BYTES,
};
use super::expand::{expand, expand_body};
use super::plan::{Origin, Plan, Wishes, plan, platform_arguments};
use super::run::{Program, run, words};
use super::state::{State, rfc3339};
use super::{BuildEvent, BuildOptions, BuildProgress, Built, PullPolicy, blocking, now};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Arguments that every `RUN` gets where they are given, without an `ARG`, and that change no key of the cache and appear
/// in no history: they say where a proxy is, which is nobody else's business.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Why an instruction could not be carried out: a mistake in it, or something else.
enum Trouble {
    Mistake(DockerfileError),
    Failure(Error),
}

impl<E: Into<Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failure(error.into())
    }
}

type Step<T> = Result<T, Trouble>;

/// Carries out a build.
pub(crate) async fn build(
    engine: &Engine,
    options: &BuildOptions,
    progress: &dyn BuildProgress,
) -> Result<Built> {
    let (file, bytes) = read(options)?;
    let dockerfile = Dockerfile::parse(&file, &bytes)?;
    let platform = Platform::host();
    let plan = plan(
        &dockerfile,
        Wishes {
            arguments: &options.arguments,
            target: options.target.as_deref(),
            platform: &platform,
        },
    )
    .map_err(|error| error.in_file(&file))?;
    let own = match options.text {
        Some(_) => None,
        None => Some(
            options
                .dockerfile
                .clone()
                .unwrap_or_else(|| options.context.join("Dockerfile")),
        ),
    };
    let context = Arc::new(Context::open(&options.context, own.as_deref())?);
    let store = engine.store().clone();
    let _guard = blocking(move || {
        let guard = store.begin_assembly()?;
        store.prune_cache()?;
        Ok(guard)
    })
    .await?;
    let total = plan
        .stages
        .iter()
        .zip(&plan.needed)
        .filter(|(_, needed)| **needed)
        .map(|(stage, _)| stage.instructions.len() + 1)
        .sum();
    let states = plan.stages.iter().map(|_| None).collect();
    Builder {
        engine,
        store: Arc::new(engine.store().clone()),
        options,
        progress,
        file,
        escape: dockerfile.escape,
        plan,
        context,
        platform,
        states,
        held: Vec::new(),
        consumed: BTreeSet::new(),
        number: 0,
        total,
        cached: 0,
    }
    .build()
    .await
}

fn read(options: &BuildOptions) -> Result<(String, Vec<u8>)> {
    if let Some(text) = &options.text {
        return Ok(("-".to_owned(), text.clone()));
    }
    let path = options
        .dockerfile
        .clone()
        .unwrap_or_else(|| options.context.join("Dockerfile"));
    let limit = MAXIMUM_BYTES as u64;
    let read = match &options.dockerfile {
        Some(path) => read_bounded(path, limit)?,
        None => read_within(&options.context, "Dockerfile".as_ref(), limit)?,
    };
    let bytes = read.ok_or_else(|| Error::File {
        step: "read",
        path: path.clone(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    Ok((path.display().to_string(), bytes))
}

struct Builder<'a> {
    engine: &'a Engine,
    store: Arc<Store>,
    options: &'a BuildOptions,
    progress: &'a dyn BuildProgress,
    file: String,
    escape: char,
    plan: Plan,
    context: Arc<Context>,
    platform: Platform,
    states: Vec<Option<State>>,
    /// Base images, so that nobody removes them meanwhile.
    held: Vec<Image>,
    consumed: BTreeSet<String>,
    number: usize,
    total: usize,
    cached: usize,
}

impl Builder<'_> {
    async fn build(mut self) -> Result<Built> {
        for index in 0..self.plan.stages.len() {
            if !self.plan.needed[index] {
                continue;
            }
            let stage = self.plan.stages[index].clone();
            self.announce(&stage.name, &stage.from);
            let begun = self.begin(&stage.base, &stage.from).await;
            let mut state = begun.map_err(|trouble| self.explain(&stage.from, trouble))?;
            for (position, instruction) in stage.instructions.iter().enumerate() {
                self.announce(&stage.name, instruction);
                let origin = stage.copies.get(&position);
                self.step(&mut state, instruction, origin)
                    .await
                    .map_err(|trouble| self.explain(instruction, trouble))?;
            }
            self.states[index] = Some(state);
        }
        self.tell_unused();
        let mut state = self.states[self.plan.target]
            .take()
            .ok_or_else(|| Error::invalid("target", "was not built"))?;
        if !self.options.labels.is_empty() {
            let given = self.options.labels.clone();
            state.edit(|config| {
                let mut labels = config.labels().clone().unwrap_or_default();
                labels.extend(given);
                config.set_labels(Some(labels));
            });
        }
        if let Some(created) = self.options.created {
            state.config.set_created(Some(rfc3339(created)));
        }
        let image = record(&self.store, &self.options.tags, &self.platform, &state).await?;
        Ok(Built {
            image,
            steps: self.total,
            cached: self.cached,
        })
    }

    fn announce(&mut self, stage: &str, instruction: &Instruction) {
        self.number += 1;
        let several = self.plan.needed.iter().filter(|needed| **needed).count() > 1;
        self.progress.event(BuildEvent::Step {
            number: self.number,
            total: self.total,
            stage: several.then_some(stage),
            text: &instruction.text,
        });
    }

    fn tell_unused(&self) {
        let globals: BTreeSet<&String> = self.plan.globals.iter().map(|(name, _)| name).collect();
        for (name, _) in &self.options.arguments {
            let is_known = self.consumed.contains(name)
                || globals.contains(name)
                || PREDEFINED.contains(&name.as_str());
            if !is_known {
                self.note(format!("no ARG asks for the build argument {name}"));
            }
        }
    }

    fn note(&self, text: String) {
        self.progress.event(BuildEvent::Note(text));
    }

    /// Says where it was.
    fn explain(&self, instruction: &Instruction, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Mistake(error) => error.in_file(&self.file).into(),
            Trouble::Failure(source) => Error::Instruction {
                file: self.file.clone(),
                line: instruction.line,
                text: instruction.text.chars().take(200).collect(),
                source: Box::new(source),
            },
        }
    }

    /// `FROM`
    async fn begin(&mut self, base: &Origin, from: &Instruction) -> Step<State> {
        match base {
            Origin::Scratch => Ok(State::scratch(&self.platform)),
            Origin::Stage(index) => match &self.states[*index] {
                Some(state) => Ok(state.continued()),
                None => Err(mistake(from, "the stage was not built")),
            },
            Origin::Image(name) => {
                let image = self.image(name, from).await?;
                match &image.rootfs {
                    Rootfs::Layers(_) => {
                        let layers = self.store.assembled_layers(&image)?;
                        Ok(State::of_image(image.config.clone(), layers))
                    }
                    Rootfs::Directory(directory) => {
                        let mut state = State::scratch(&self.platform);
                        let work = CopyWork {
                            root: Root::Directory(directory.clone()),
                            sources: vec!["/".to_owned()],
                            ..self.copy_work(&state)
                        };
                        let step = self.outcome(from, move || work.run()).await?;
                        state.note(&from.text, step.layer, Some(&step.created));
                        Ok(state)
                    }
                    Rootfs::Host => Err(with_hint(
                        from,
                        "host: is this machine itself and no image to build on",
                        "name an image, or FROM scratch",
                    )),
                }
            }
        }
    }

    /// Finds or fetches an image.
    async fn image(&mut self, name: &str, instruction: &Instruction) -> Step<Image> {
        let source: Source = name
            .parse()
            .map_err(|error: sbxrt_image::InvalidSource| mistake(instruction, error.to_string()))?;
        // A Dockerfile is a stranger's, and would choose what of this machine becomes an image.
        let by_caller = self.options.arguments.iter();
        if matches!(source, Source::Directory(_))
            && !by_caller.map(|(_, value)| value).any(|value| value == name)
        {
            return Err(with_hint(
                instruction,
                "a Dockerfile cannot name a directory of this machine",
                "leave the name to whoever builds: ARG ROOT before the first FROM, ${ROOT} here, and \
                 --build-arg ROOT=dir:PATH",
            ));
        }
        let options = &self.options.pull_options;
        let progress = self.progress.pull();
        let image = match self.options.pull {
            PullPolicy::Always if !options.offline => {
                self.store.pull(&source, options, progress).await?
            }
            PullPolicy::Missing | PullPolicy::Always => {
                self.store.find_or_pull(&source, options, progress).await?
            }
            PullPolicy::Never => self
                .store
                .find(&source, &options.platform)?
                .ok_or_else(|| Error::NotPresent {
                    name: source.to_string(),
                })?,
        };
        self.held.push(image.clone());
        Ok(image)
    }

    /// Everything but `FROM`.
    async fn step(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        origin: Option<&Origin>,
    ) -> Step<()> {
        let escape = self.escape;
        let variables = state.clone();
        let value = |word: &str| {
            expand(word, escape, &|name| variables.variable(name))
                .map_err(|reason| mistake(instruction, reason))
        };
        let values = |words: &[String]| -> Step<Vec<String>> {
            let expanded = words.iter().map(|word| value(word));
            expanded.collect::<Step<Vec<_>>>()
        };
        let pairs = |pairs: &[(String, String)]| -> Step<Vec<(String, String)>> {
            let expanded = pairs
                .iter()
                .map(|(name, word)| Ok((value(name)?, value(word)?)));
            expanded.collect()
        };
        match &instruction.kind {
            InstructionKind::From { .. } => return Ok(()),
            InstructionKind::Ignored(reason) => {
                let name = instruction
                    .text
                    .split_whitespace()
                    .next()
                    .unwrap_or_default();
                self.note(format!(
                    "{}:{}: {name} is left out: {reason}",
                    self.file, instruction.line
                ));
                return Ok(());
            }
            InstructionKind::Run {
                command,
                heredocs,
                network,
            } => {
                return self
                    .run(state, instruction, command, heredocs, network.as_deref())
                    .await;
            }
            InstructionKind::Copy(copy) => {
                return self.copy(state, instruction, copy, origin).await;
            }
            InstructionKind::Workdir(word) => {
                let path = state.absolute(&value(word)?);
                let path = match path.trim_end_matches('/') {
                    "" => "/".to_owned(),
                    path => path.to_owned(),
                };
                let (base, store) = (self.base(state), Arc::clone(&self.store));
                let made = path.clone();
                let work = move || base.make_directory(&store, &made);
                let step = self.outcome(instruction, work).await?;
                state.edit(|config| {
                    config.set_working_dir(Some(path));
                });
                let created = step.layer.is_some().then_some(step.created);
                state.note(&instruction.text, step.layer, created.as_deref());
                return Ok(());
            }
            InstructionKind::Arg(arguments) => {
                for (name, default) in arguments {
                    let name = value(name)?;
                    let default = default.as_ref().map(|word| value(word)).transpose()?;
                    self.consumed.insert(name.clone());
                    if let Some(value) = self.argument(&name, default) {
                        state.arguments.push((name, value));
                    }
                }
            }
            InstructionKind::Env(env) => {
                for (name, value) in pairs(env)? {
                    crate::sandbox::check_environment(&name, &value)?;
                    state.set_env(&name, &value);
                }
            }
            InstructionKind::Label(labels) => {
                let added = pairs(labels)?;
                state.edit(|config| {
                    let mut labels = config.labels().clone().unwrap_or_default();
                    labels.extend(added);
                    config.set_labels(Some(labels));
                });
            }
            InstructionKind::User(word) => {
                let user = value(word)?;
                if user.is_empty() {
                    return Err(mistake(instruction, "the user is empty"));
                }
                state.edit(|config| {
                    config.set_user(Some(user));
                });
            }
            InstructionKind::Entrypoint(command) => {
                let words = in_shell(command, &state.shell);
                let keeps_cmd = state.has_own_cmd;
                state.edit(|config| {
                    config.set_entrypoint(words);
                    if !keeps_cmd {
                        // The base image's arguments are for the base image's program.
                        config.set_cmd(None);
                    }
                });
            }
            InstructionKind::Cmd(command) => {
                let words = in_shell(command, &state.shell);
                state.has_own_cmd = true;
                state.edit(|config| {
                    config.set_cmd(words);
                });
            }
            InstructionKind::Shell(words) => state.shell.clone_from(words),
            InstructionKind::Expose(words) => {
                let mut added = Vec::new();
                for word in values(words)? {
                    for port in word.split_whitespace() {
                        added.push(port_of(port).map_err(|reason| mistake(instruction, reason))?);
                    }
                }
                state.edit(|config| {
                    let mut ports = config.exposed_ports().clone().unwrap_or_default();
                    ports.extend(added);
                    ports.sort();
                    ports.dedup();
                    config.set_exposed_ports(Some(ports));
                });
            }
            InstructionKind::Volume(words) => {
                let added = values(words)?;
                state.edit(|config| {
                    let mut volumes = config.volumes().clone().unwrap_or_default();
                    volumes.extend(added);
                    volumes.sort();
                    volumes.dedup();
                    config.set_volumes(Some(volumes));
                });
            }
            InstructionKind::StopSignal(word) => {
                let signal = value(word)?;
                state.edit(|config| {
                    config.set_stop_signal(Some(signal));
                });
            }
        }
        state.note(&instruction.text, None, None);
        Ok(())
    }

    /// What an `ARG` is worth: what the caller gave, its default, or what came before the first `FROM`.
    fn argument(&self, name: &str, default: Option<String>) -> Option<String> {
        let given = self
            .options
            .arguments
            .iter()
            .rev()
            .find(|(known, _)| known == name);
        if let Some((_, given)) = given {
            return Some(given.clone());
        }
        if default.is_some() {
            return default;
        }
        let global = self
            .plan
            .globals
            .iter()
            .rev()
            .find(|(known, _)| known == name);
        if let Some((_, value)) = global {
            return value.clone();
        }
        platform_arguments(&self.platform)
            .into_iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }

    /// Where the files of a stage are, bottom first.
    fn layers(&self, state: &State) -> Vec<std::path::PathBuf> {
        match self.runnable(state).rootfs {
            Rootfs::Layers(layers) => layers,
            Rootfs::Directory(_) | Rootfs::Host => Vec::new(),
        }
    }

    /// A stage as an image to run something in.
    fn runnable(&self, state: &State) -> Image {
        self.store
            .assembled("build", &self.platform, &state.config, &state.layers)
    }

    fn base(&self, state: &State) -> Base {
        Base {
            layers: self.layers(state),
            chain_id: state.chain_id().cloned(),
            latest: self.options.created,
            created: rfc3339(self.options.created.unwrap_or_else(now)),
            use_cache: self.options.use_cache,
        }
    }

    fn copy_work(&self, state: &State) -> CopyWork {
        CopyWork {
            store: Arc::clone(&self.store),
            root: Root::Context(Arc::clone(&self.context)),
            sources: Vec::new(),
            contents: Vec::new(),
            destination: "/".to_owned(),
            chown: None,
            mode: None,
            unpacks: false,
            base: self.base(state),
        }
    }

    /// Has something done that blocks, and tells whether it had been done before.
    async fn outcome(
        &mut self,
        instruction: &Instruction,
        work: impl FnOnce() -> super::copy::Outcome + Send + 'static,
    ) -> Step<CachedStep> {
        match blocking(work).await? {
            Ok((step, cached)) => {
                if cached {
                    self.hit();
                }
                Ok(step)
            }
            Err(reason) => Err(mistake(instruction, reason)),
        }
    }

    fn hit(&mut self) {
        self.cached += 1;
        self.progress.event(BuildEvent::Cached);
    }

    async fn copy(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        copy: &CopyInstruction,
        origin: Option<&Origin>,
    ) -> Step<()> {
        let escape = self.escape;
        let variables = state.clone();
        let lookup = |name: &str| variables.variable(name);
        let value = |word: &str| {
            expand(word, escape, &lookup).map_err(|reason| mistake(instruction, reason))
        };
        let root = match origin {
            None => Root::Context(Arc::clone(&self.context)),
            Some(Origin::Scratch) => {
                return Err(mistake(instruction, "there is nothing to copy in scratch"));
            }
            Some(Origin::Stage(index)) => match &self.states[*index] {
                Some(other) => Root::Layers(self.layers(other)),
                None => return Err(mistake(instruction, "the stage was not built")),
            },
            Some(Origin::Image(name)) => match self.image(name, instruction).await?.rootfs {
                Rootfs::Layers(layers) => Root::Layers(layers),
                Rootfs::Directory(directory) => Root::Directory(directory),
                Rootfs::Host => {
                    return Err(with_hint(
                        instruction,
                        "nothing can be copied from host:",
                        "put the files into the context",
                    ));
                }
            },
        };
        let mut contents = Vec::new();
        for heredoc in &copy.heredocs {
            let content = if heredoc.expand {
                expand_body(&heredoc.content, escape, &lookup)
                    .map_err(|reason| mistake(instruction, reason))?
            } else {
                heredoc.content.clone()
            };
            contents.push((heredoc.name.clone(), content.into_bytes()));
        }
        let mut sources = Vec::new();
        for source in &copy.sources {
            sources.push(value(source)?);
        }
        let mode = match &copy.chmod {
            None => None,
            Some(word) => Some(mode(&value(word)?).map_err(|reason| {
                with_hint(
                    instruction,
                    &reason,
                    "write it in octal digits, such as 0755",
                )
            })?),
        };
        let work = CopyWork {
            root,
            sources,
            contents,
            destination: state.absolute(&value(&copy.destination)?),
            chown: copy.chown.as_ref().map(|word| value(word)).transpose()?,
            mode,
            unpacks: copy.is_add,
            ..self.copy_work(state)
        };
        let step = self.outcome(instruction, move || work.run()).await?;
        state.note(&instruction.text, step.layer, Some(&step.created));
        Ok(())
    }

    async fn run(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        command: &CommandLine,
        heredocs: &[Heredoc],
        network: Option<&str>,
    ) -> Step<()> {
        let network = match (network, self.options.network) {
            (Some("none"), _) => Network::None,
            (Some("host"), Network::None) => {
                return Err(with_hint(
                    instruction,
                    "it asks for this machine's network, which this build may not use",
                    "if you trust the Dockerfile, add --network host",
                ));
            }
            (_, allowed) => allowed,
        };
        let (words, script) = words(command, heredocs, &state.shell);
        let arguments = state.visible_arguments();
        let proxies = self
            .options
            .arguments
            .iter()
            .filter(|(name, _)| PREDEFINED.contains(&name.as_str()))
            .cloned();
        let program = Program {
            words,
            script,
            env: proxies.chain(arguments.clone()).collect(),
            network,
            emulate_root: self.options.emulate_root,
            limits: self.options.limits.clone(),
        };
        let base = self.base(state);
        let key = key(
            base.chain_id.as_ref(),
            "run",
            &serde_json::json!({
                "words": program.words,
                "script": program.script,
                "env": state.env(),
                "arguments": arguments,
                "directory": state.directory(),
                "user": state.user(),
                "network": format!("{network:?}"),
                "emulate_root": program.emulate_root,
                "latest": base.latest,
            }),
        );
        if base.use_cache
            && let Some(step) = self.store.cached_step(&key)
        {
            self.hit();
            state.note(&instruction.text, step.layer, Some(&step.created));
            return Ok(());
        }
        let image = self.runnable(state);
        let layer = run(self.engine, &image, &program, &base, self.progress).await?;
        let step = base.keep(&self.store, &key, layer)?;
        state.note(&instruction.text, step.layer, Some(&step.created));
        Ok(())
    }
}

/// Records a stage as an image, by all of its names.
pub(crate) async fn record(
    store: &Arc<Store>,
    tags: &[Source],
    platform: &Platform,
    state: &State,
) -> Result<Image> {
    let (store, platform, state) = (Arc::clone(store), platform.clone(), state.clone());
    let tags = tags.to_vec();
    blocking(move || {
        let mut tags = tags.iter();
        let image =
            store.put_assembled(tags.next(), &platform, state.config.clone(), &state.layers)?;
        for tag in tags {
            store.put_assembled(Some(tag), &platform, state.config.clone(), &state.layers)?;
        }
        Ok(image)
    })
    .await
}

/// A command as the configuration has it; none where it is empty.
pub(crate) fn in_shell(command: &CommandLine, shell: &[String]) -> Option<Vec<String>> {
    match command {
        CommandLine::Exec(words) if words.is_empty() => None,
        CommandLine::Exec(words) => Some(words.clone()),
        CommandLine::Shell(text) if text.is_empty() => None,
        CommandLine::Shell(text) => Some([shell, std::slice::from_ref(text)].concat()),
    }
}

fn mistake(instruction: &Instruction, reason: impl Into<String>) -> Trouble {
    Trouble::Mistake(DockerfileError::new(
        instruction.line,
        &instruction.text,
        reason,
    ))
}

fn with_hint(instruction: &Instruction, reason: &str, hint: &str) -> Trouble {
    Trouble::Mistake(
        DockerfileError::new(instruction.line, &instruction.text, reason).with_hint(hint),
    )
}

/// Reads `--chmod`.
fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is no mode"))
}

/// Reads a port or a range of ports, with its protocol.
fn port_of(text: &str) -> Result<String, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let valid = match ports.split_once('-') {
        Some((low, high)) => is_port(low) && is_port(high),
        None => is_port(ports),
    };
    if !valid || !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("{text:?} is no port"));
    }
    Ok(format!("{ports}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_modes_are_checked() {
        let ports = [
            ("80", Some("80/tcp")),
            ("53/UDP", Some("53/udp")),
            ("1-3", Some("1-3/tcp")),
            ("x", None),
            ("80/http", None),
            ("70000", None),
        ];
        for (text, expected) in ports {
            assert_eq!(port_of(text).ok().as_deref(), expected, "{text}");
        }
        let modes = [
            ("755", Some(0o755)),
            ("04755", Some(0o4755)),
            ("u+x", None),
            ("99", None),
            ("17777", None),
        ];
        for (text, expected) in modes {
            assert_eq!(mode(text).ok(), expected, "{text}");
        }
    }
}
