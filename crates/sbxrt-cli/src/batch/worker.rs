//! One item on its way from a line of the input to a line of the results.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use sbxrt::{
    Engine, Image, OutputLimits, OutputPath, Outputs, Report, RuntimeError, Sandbox, Source,
    Termination,
};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{OnceCell, mpsc, watch};

use crate::args::{ImageArguments, LimitArguments};
use crate::batch::input::Line;
use crate::batch::item::{Flaw, Item};
use crate::batch::key::{Common, Key};
use crate::batch::results::Done;
use crate::batch::summary::{Tally, kind};
use crate::batch::{LAST_WORDS, OUTPUT_LIMIT};
use crate::diagnostics::Diagnostic;
use crate::error::{Error, Result};
use crate::limit::JSON_TIMEOUT;
use crate::policy::{Bounds, Policy, find_image};
use crate::printer::Printer;
use crate::relay::Relayed;
use crate::result::{Account, Document};
use crate::status;

/// The version of a line of the results.
const VERSION: u32 = 1;
/// How many sandboxes with limits or images of their own are kept for the items to come.
const SANDBOXES: usize = 64;
/// How long we wait to hear of a signal that a program has heard of already.
const HEARSAY: Duration = Duration::from_millis(500);

/// What the tasks are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// No more items are begun.
    Stopping,
    /// Nothing is waited for.
    Cancelled,
}

/// Everything that items share.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) engine: Engine,
    pub(crate) policy: Policy,
    pub(crate) limits: LimitArguments,
    pub(crate) bounds: Bounds,
    pub(crate) words: Vec<String>,
    pub(crate) common: Common,
    pub(crate) outputs: OutputLimits,
    pub(crate) output_dir: Option<PathBuf>,
    pub(crate) image: ImageArguments,
    /// For items that have neither an image nor limits of their own.
    pub(crate) sandbox: Sandbox,
    /// The images that items may name.
    pub(crate) allowed: HashSet<Source>,
    /// The images of items, each looked for once.
    pub(crate) images: Mutex<HashMap<String, Arc<Wanted>>>,
    pub(crate) sandboxes: Mutex<HashMap<String, Sandbox>>,
    pub(crate) done: Mutex<Done>,
}

/// An image that an item wants: there, or not to be had.
type Wanted = OnceCell<Result<Image, Diagnostic>>;

/// What became of an item.
#[derive(Debug)]
pub(crate) enum Outcome {
    Result(Tally),
    /// It is no item, or asks for something that cannot be.
    Malformed,
    /// sbxrt could not run it.
    Failed,
    /// It had a result before.
    Skipped,
    /// It was ended because all is to end, and has no line.
    Dropped,
}

/// Why an item has no result.
enum Trouble {
    Malformed(Diagnostic),
    Failed(Diagnostic),
    Dropped,
    Skipped,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Failed(Diagnostic::new(&error))
    }
}

impl From<sbxrt::Error> for Trouble {
    fn from(error: sbxrt::Error) -> Self {
        // What an item can bring about by itself says nothing of the items to come.
        let is_the_items = match &error {
            sbxrt::Error::Invalid { .. } => true,
            sbxrt::Error::Runtime(RuntimeError::Start(failure)) => {
                failure.step == "put a file into the sandbox"
            }
            _ => false,
        };
        let diagnostic = Diagnostic::new(&Error::from(error));
        if is_the_items {
            Self::Malformed(diagnostic)
        } else {
            Self::Failed(diagnostic)
        }
    }
}

impl From<Flaw> for Trouble {
    fn from(Flaw { field, reason }: Flaw) -> Self {
        Self::Malformed(Diagnostic::new(&Error::Item { field, reason }))
    }
}

/// A line of the results.
#[derive(Debug, Serialize)]
struct Record<'a> {
    version: u32,
    id: Option<&'a Value>,
    key: Option<Key>,
    index: u64,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum What<'a> {
    Result(Box<Document<'a>>),
    Error(&'a Diagnostic),
}

impl Record<'_> {
    /// With its end, for one write.
    fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_else(|error| {
            // Nothing in it can fail to be written; if it does, the line says so.
            format!(
                "{{\"version\":{VERSION},\"error\":{:?}}}",
                error.to_string()
            )
            .into_bytes()
        });
        line.push(b'\n');
        line
    }
}

impl Batch {
    /// Runs what a line says, and sends its result.
    pub(crate) async fn attend(
        &self,
        line: Line,
        mut phase: watch::Receiver<Phase>,
        lines: mpsc::Sender<Vec<u8>>,
    ) -> Outcome {
        let index = line.number;
        let malformed = |reason: String| {
            let error = Error::NotAnItem {
                line: index,
                reason,
            };
            Trouble::Malformed(Diagnostic::new(&error))
        };
        let value = match &line.bytes {
            None => Err(malformed("it is longer than any item".to_owned())),
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| malformed(error.to_string()))
                .and_then(|value: Value| {
                    value
                        .is_object()
                        .then_some(value)
                        .ok_or_else(|| malformed("it is no object".to_owned()))
                }),
        };
        drop(line);
        let id = value
            .as_ref()
            .ok()
            .and_then(|value| value.get("id").cloned());
        let mut record = Record {
            version: VERSION,
            id: id.as_ref(),
            key: None,
            index,
            what: What::Error(&Diagnostic {
                message: String::new(),
                causes: Vec::new(),
                hint: None,
            }),
        };
        let ran = match value {
            Ok(value) => self.run(value, index, &mut record.key, phase.clone()).await,
            Err(trouble) => Err(trouble),
        };
        let (line, outcome) = match ran {
            Ok(mut ran) => {
                record.what = What::Result(Box::new(ran.document()));
                (record.to_line(), Outcome::Result(ran.tally()))
            }
            Err(Trouble::Skipped) => return Outcome::Skipped,
            Err(Trouble::Dropped) => return Outcome::Dropped,
            Err(Trouble::Malformed(diagnostic)) => {
                record.what = What::Error(&diagnostic);
                (record.to_line(), Outcome::Malformed)
            }
            Err(Trouble::Failed(diagnostic)) => {
                record.what = What::Error(&diagnostic);
                (record.to_line(), Outcome::Failed)
            }
        };
        let lost_patience = async {
            // Whoever could say so is gone: that is the same.
            drop(phase.wait_for(|phase| *phase == Phase::Cancelled).await);
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            sent = lines.send(line) => match sent {
                Ok(()) => outcome,
                // The writer has failed and says why.
                Err(_) => Outcome::Dropped,
            },
            // Nobody reads the results.
            () = lost_patience => Outcome::Dropped,
        }
    }

    async fn run(
        &self,
        value: Value,
        index: u64,
        known: &mut Option<Key>,
        mut phase: watch::Receiver<Phase>,
    ) -> Result<Ran, Trouble> {
        let fields = value
            .as_object()
            .map_or_else(Default::default, Clone::clone);
        let item = Item::parse(&fields, &self.limits)?;
        let bounds = match &item.limits {
            Some(limits) => Bounds::new(limits, Some(JSON_TIMEOUT), Some(OUTPUT_LIMIT))
                .map_err(|error| Trouble::Malformed(Diagnostic::new(&error)))?,
            None => self.bounds.clone(),
        };
        let image = match &item.image {
            Some(source) if self.allowed.contains(source) => self.find(source).await?,
            // Looking for one could show files of this machine, or ask somebody on its network.
            Some(source) => {
                let reason = format!("{source} is not allowed: name it with --allow-image");
                return Err(Flaw {
                    field: "image".to_owned(),
                    reason,
                }
                .into());
            }
            None => self.sandbox.image().clone(),
        };
        let key = self.common.key(&value, &image);
        drop((value, fields));
        *known = Some(key);
        if locked(&self.done).take(&key) {
            return Err(Trouble::Skipped);
        }
        let sandbox = match (&item.image, &item.limits) {
            (None, None) => self.sandbox.clone(),
            _ => self.sandbox(&image, &bounds)?,
        };
        let words = item.command.unwrap_or_else(|| self.words.clone());
        let words = words.into_iter().chain(item.arguments);
        let mut command = self
            .policy
            .command(&sandbox, words)?
            .files(item.files)
            .output_limit(bounds.output)
            .output_action(bounds.output_action);
        for (name, value) in item.variables {
            command = command.env(name, value);
        }
        if let Some(directory) = item.workdir {
            command = command.current_dir(directory);
        }
        if let Some(stdin) = item.stdin {
            command = command.stdin(stdin);
        }
        let place = self.place(index, &key, &item.outputs)?;
        command = command.outputs(Outputs {
            paths: place.paths(item.outputs),
            limits: self.outputs,
            overwrite: true,
        });
        let began = Instant::now();
        let output = tokio::select! {
            output = command.output() => output?,
            // Dropped, a run ends with all that it started.
            _ = phase.wait_for(|phase| *phase == Phase::Cancelled) => return Err(Trouble::Dropped),
        };
        drop(place);
        let elapsed = began.elapsed();
        let by_stranger = matches!(output.termination, Termination::Signaled { signal } if signal == libc::SIGTERM || signal == libc::SIGINT);
        if by_stranger && output.evidence.sender.is_none() {
            // A scheduler that ends a job signals every process of it, those in sandboxes too. What such a program did is no
            // result.
            let ending = phase.wait_for(|phase| *phase != Phase::Running);
            if tokio::time::timeout(HEARSAY, ending).await.is_ok() {
                return Err(Trouble::Dropped);
            }
        }
        Ok(Ran::new(
            output,
            bounds,
            image,
            command.words().to_vec(),
            elapsed,
        ))
    }

    /// The image of an item. One that cannot be had is not looked for again.
    async fn find(&self, source: &Source) -> Result<Image, Trouble> {
        let name = source.to_string();
        let cell = Arc::clone(locked(&self.images).entry(name).or_default());
        let found = cell.get_or_init(async || {
            let (engine, source, arguments) =
                (self.engine.clone(), source.clone(), self.image.clone());
            let find = move || {
                find_image(&engine, &source, &arguments, Printer::new(true))
                    .map_err(|error| Diagnostic::new(&error))
            };
            tokio::task::spawn_blocking(find)
                .await
                .unwrap_or_else(|error| {
                    Err(Diagnostic {
                        message: format!("failed to look for the image: {error}"),
                        causes: Vec::new(),
                        hint: None,
                    })
                })
        });
        found.await.clone().map_err(Trouble::Failed)
    }

    fn sandbox(&self, image: &Image, bounds: &Bounds) -> Result<Sandbox> {
        // What differs is the image and the limits.
        let name = format!("{} {:?} {:?}", image.name, image.digest, bounds.limits);
        if let Some(sandbox) = locked(&self.sandboxes).get(&name) {
            return Ok(sandbox.clone());
        }
        let sandbox = self
            .policy
            .sandbox(&self.engine, image, bounds.limits.clone())?;
        let mut sandboxes = locked(&self.sandboxes);
        if sandboxes.len() >= SANDBOXES {
            sandboxes.clear();
        }
        sandboxes.insert(name, sandbox.clone());
        Ok(sandbox)
    }

    /// Makes the directory for the outputs of an item. Its key is a part of the name: lines move when somebody edits the
    /// items, and what a result speaks of must not become another item's.
    fn place(&self, index: u64, key: &Key, outputs: &[PathBuf]) -> Result<Place, Trouble> {
        let flaw = |path: &Path, reason: &str| Flaw {
            field: "outputs".to_owned(),
            reason: format!("{}: {reason}", path.display()),
        };
        let mut names = HashSet::new();
        for path in outputs {
            let name = path.file_name();
            let name = name.ok_or_else(|| flaw(path, "name a file or a directory below /"))?;
            if !names.insert(name) && self.output_dir.is_some() {
                return Err(flaw(path, "another output has the same name").into());
            }
        }
        let directory = self.output_dir.as_ref().filter(|_| !outputs.is_empty());
        let directory = directory
            .map(|directory| directory.join(format!("{index}-{}", &key.to_string()[..12])));
        if let Some(directory) = &directory {
            std::fs::create_dir_all(directory).map_err(|source| Error::ResultFile {
                path: directory.clone(),
                source,
            })?;
        }
        Ok(Place(directory))
    }
}

/// Where the copies of an item's outputs go. A directory that nothing was copied to goes again.
struct Place(Option<PathBuf>);

impl Place {
    fn paths(&self, outputs: Vec<PathBuf>) -> Vec<OutputPath> {
        let path = |path: PathBuf| OutputPath {
            copy_to: self
                .0
                .as_ref()
                .zip(path.file_name())
                .map(|(place, name)| place.join(name)),
            path,
        };
        outputs.into_iter().map(path).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(directory) = &self.0 {
            // Unless something is in it.
            drop(std::fs::remove_dir(directory));
        }
    }
}

/// A run that is over.
struct Ran {
    id: String,
    report: Report,
    stdout: sbxrt::Captured,
    stderr: sbxrt::Captured,
    bounds: Bounds,
    image: Image,
    words: Vec<String>,
    elapsed: Duration,
    exit_code: u8,
}

impl Ran {
    fn new(
        output: sbxrt::Output,
        bounds: Bounds,
        image: Image,
        words: Vec<String>,
        elapsed: Duration,
    ) -> Self {
        let report = Report {
            termination: output.termination,
            evidence: output.evidence,
            usage: output.usage,
            enforcement: output.enforcement,
            limits_hit: output.limits_hit,
            root_emulated: output.root_emulated,
            isolation: output.isolation,
            outputs: output.files,
            leaked: output.leaked,
            timings: output.timings,
        };
        Self {
            id: output.id,
            exit_code: status::exit_code(&report),
            report,
            stdout: output.stdout,
            stderr: output.stderr,
            bounds,
            image,
            words,
            elapsed,
        }
    }

    fn tally(&self) -> Tally {
        Tally {
            kind: kind(&self.report.termination),
            succeeded: self.report.termination == Termination::Exited { code: 0 },
            wall: self.report.usage.wall_time,
            cpu: self.report.usage.user_time + self.report.usage.system_time,
        }
    }

    fn document(&mut self) -> Document<'_> {
        let limit = self.bounds.output.unwrap_or(u64::MAX);
        let relayed = |captured: &mut sbxrt::Captured| {
            let captured = std::mem::take(captured);
            Relayed {
                omitted: captured.total.saturating_sub(limit),
                captured,
                failure: None,
            }
        };
        let (stdout, stderr) = (relayed(&mut self.stdout), relayed(&mut self.stderr));
        Document::new(Account {
            id: &self.id,
            image: &self.image,
            command: &self.words,
            limits: &self.bounds.limits,
            output_limit: self.bounds.output,
            report: &self.report,
            exit_code: self.exit_code,
            stdout,
            stderr,
            keeps: true,
            files: [None, None],
            image_time: Duration::ZERO,
            launcher_time: Duration::ZERO,
            total_time: self.elapsed,
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
