//! `RUN`: a program in a sandbox whose changes become a layer.

use sbxrt_image::{AssembledLayer, Filled, Image, LayerDraft};
use sbxrt_runtime::{Limits, Mount, Network, Termination};
use tokio::net::unix::pipe::Receiver;

use super::copy::Base;
use super::dockerfile::{CommandLine, Heredoc, is_heredoc};
use super::{BuildEvent, BuildProgress, blocking};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// How much of a program's output is passed on at a time.
const BUFFER: usize = 64 << 10;
/// Where a script of a here-document is seen inside.
const SCRIPT: &str = "/run/sbxrt-heredoc";

/// What a program of a build is given.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) words: Vec<String>,
    /// A here-document that is a program of its own, by its `#!` line.
    pub(crate) script: Option<String>,
    /// Beside the image's.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) network: Network,
    pub(crate) emulate_root: bool,
    pub(crate) limits: Limits,
}

/// What is executed for a `RUN`, and the script that it is where it is one.
pub(crate) fn words(
    command: &CommandLine,
    heredocs: &[Heredoc],
    shell: &[String],
) -> (Vec<String>, Option<String>) {
    let text = match command {
        CommandLine::Exec(words) => return (words.clone(), None),
        CommandLine::Shell(text) => text,
    };
    let shelled = |text: String| [shell, &[text]].concat();
    match heredocs {
        [] => (shelled(text.clone()), None),
        [only] if is_heredoc(text) => {
            if only.content.starts_with("#!") {
                return (vec![SCRIPT.to_owned()], Some(only.content.clone()));
            }
            (shelled(only.content.clone()), None)
        }
        // The shell reads them as it would from a file.
        several => {
            let mut whole = text.clone();
            for heredoc in several {
                whole.push('\n');
                whole.push_str(&heredoc.content);
                whole.push_str(&heredoc.name);
            }
            whole.push('\n');
            (shelled(whole), None)
        }
    }
}

/// Runs a program in an image and makes a layer of what it changed; none where it changed nothing.
pub(crate) async fn run(
    engine: &Engine,
    image: &Image,
    program: &Program,
    base: &Base,
    progress: &dyn BuildProgress,
) -> Result<Option<AssembledLayer>> {
    let draft = engine.store().draft(&base.layers)?;
    execute(engine, image, program, &draft.files(), &draft, progress).await?;
    let (parent, latest) = (base.chain_id.clone(), base.latest);
    blocking(move || Ok(draft.finish(parent.as_ref(), Filled::ByRunning, latest)?)).await
}

async fn execute(
    engine: &Engine,
    image: &Image,
    program: &Program,
    upper: &std::path::Path,
    draft: &LayerDraft,
    progress: &dyn BuildProgress,
) -> Result<()> {
    let mut builder = engine
        .sandbox(image)
        .limits(program.limits.clone())
        .network(program.network)
        .upper(upper)
        .emulate_root(program.emulate_root)
        // The same each time, for programs that write it down.
        .hostname("build");
    for (name, value) in &program.env {
        builder = builder.env(name, value);
    }
    if let Some(script) = &program.script {
        let path = draft.auxiliary("script", script.as_bytes(), 0o755)?;
        builder = builder.mount(Mount::read_only(path, SCRIPT));
    }
    let sandbox = builder.build()?;
    let mut words = program.words.iter();
    let first = words
        .next()
        .ok_or_else(|| Error::invalid("command", "there is none"))?;
    let mut child = sandbox.command(first).args(words).spawn()?;
    let mut stdout = Stream::new(child.stdout.take());
    let mut stderr = Stream::new(child.stderr.take());
    let failed = || Error::io("read the program's output");
    let report = loop {
        tokio::select! {
            report = child.wait() => break report?,
            read = stdout.read() => {
                read.map_err(failed())?;
                progress.event(BuildEvent::Stdout(stdout.bytes()));
            }
            read = stderr.read() => {
                read.map_err(failed())?;
                progress.event(BuildEvent::Stderr(stderr.bytes()));
            }
        }
    };
    // Nobody is left to write, so what is there now is the rest.
    while stdout.take().map_err(failed())? {
        progress.event(BuildEvent::Stdout(stdout.bytes()));
    }
    while stderr.take().map_err(failed())? {
        progress.event(BuildEvent::Stderr(stderr.bytes()));
    }
    match report.termination {
        Termination::Exited { code: 0 } => Ok(()),
        termination => Err(Error::ProgramFailed { termination }),
    }
}

/// A stream of a program on its way to whoever follows the build.
struct Stream {
    pipe: Option<Receiver>,
    buffer: Vec<u8>,
    length: usize,
}

impl Stream {
    fn new(pipe: Option<Receiver>) -> Self {
        Self {
            pipe,
            buffer: vec![0; BUFFER],
            length: 0,
        }
    }

    /// What was read last.
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Waits until there is something; for ever once there will be nothing more.
    async fn read(&mut self) -> std::io::Result<()> {
        loop {
            let Some(pipe) = &self.pipe else {
                return std::future::pending().await;
            };
            pipe.readable().await?;
            if self.take()? {
                return Ok(());
            }
        }
    }

    /// Takes what is there; returns whether there was anything.
    fn take(&mut self) -> std::io::Result<bool> {
        let Some(pipe) = &self.pipe else {
            return Ok(false);
        };
        match pipe.try_read(&mut self.buffer) {
            Ok(0) => {
                self.pipe = None;
                Ok(false)
            }
            Ok(length) => {
                self.length = length;
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (CommandLine, Vec<Heredoc>, &'a [&'a str], Option<&'a str>);

    #[test]
    fn what_is_executed_depends_on_the_form() {
        let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
        let heredoc = |name: &str, content: &str| Heredoc {
            name: name.to_owned(),
            content: content.to_owned(),
            expand: true,
        };
        let text = |text: &str| CommandLine::Shell(text.to_owned());
        let exec = CommandLine::Exec(vec!["a".to_owned(), "$B".to_owned()]);
        let table: [Row<'_>; 5] = [
            (text("a && b"), vec![], &["/bin/sh", "-c", "a && b"], None),
            (exec, vec![], &["a", "$B"], None),
            (
                text("<<EOF"),
                vec![heredoc("EOF", "a\nb\n")],
                &["/bin/sh", "-c", "a\nb\n"],
                None,
            ),
            (
                text("<<EOF"),
                vec![heredoc("EOF", "#!/bin/x\n")],
                &[SCRIPT],
                Some("#!/bin/x\n"),
            ),
            (
                text("cat <<A - <<B"),
                vec![heredoc("A", "1\n"), heredoc("B", "")],
                &["/bin/sh", "-c", "cat <<A - <<B\n1\nA\nB\n"],
                None,
            ),
        ];
        for (command, heredocs, expected, script) in table {
            let found = words(&command, &heredocs, &shell);
            assert_eq!(found.0, expected, "{command:?}");
            assert_eq!(found.1.as_deref(), script, "{command:?}");
        }
    }
}
