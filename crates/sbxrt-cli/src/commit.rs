//! `sbxrt commit`: an image from another one and a command.

use clap::Args;
use sbxrt::build::CommitOptions;
use sbxrt::{Engine, Network, Source};

use crate::args::{COMMIT_HELP, IMAGE, PROCESS, REPORT, StoreArguments};
use crate::build::{ProgramArguments, Screen, attend, digest, pair, tag};
use crate::environment::{self, Variable};
use crate::error::{Error, Result};
use crate::images::Summary;
use crate::location;
use crate::printer::Printer;

/// `sbxrt commit`.
#[derive(Debug, Args)]
#[command(
    override_usage = "sbxrt commit [OPTIONS] <IMAGE> <NAME> [-- COMMAND [ARG]...]",
    after_long_help = COMMIT_HELP
)]
pub(crate) struct CommitArguments {
    /// Image to begin with
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// What the new image is called
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Command whose changes the new image has, run as root; without one only
    /// the configuration is changed
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,

    /// Set an environment variable for the command and in the new image
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = environment::variable, help_heading = PROCESS)]
    pub(crate) env: Vec<Variable>,

    /// Set the working directory for the command and in the new image
    #[arg(short, long, value_name = "DIR", help_heading = PROCESS)]
    pub(crate) workdir: Option<String>,

    /// Set the user that the new image runs as
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = IMAGE)]
    pub(crate) user: Option<String>,

    /// Set the new image's entry point: a program, or ["PROGRAM", "ARG", ...]
    #[arg(long, value_name = "WORDS", value_parser = words, help_heading = IMAGE)]
    pub(crate) entrypoint: Option<Words>,

    /// Set the new image's arguments: one, or ["ARG", ...]
    #[arg(long, value_name = "WORDS", value_parser = words, help_heading = IMAGE)]
    pub(crate) cmd: Option<Words>,

    /// Add a label to the new image
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, help_heading = IMAGE)]
    pub(crate) label: Vec<(String, String)>,

    /// Say this in the new image's history
    #[arg(long, value_name = "TEXT", help_heading = IMAGE)]
    pub(crate) message: Option<String>,

    #[command(flatten)]
    pub(crate) program: ProgramArguments,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print a JSON document instead of the digest
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,

    /// Show the command's output only where it fails
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// The words of an entry point or of its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words(Vec<String>);

/// Reads a JSON array of words, or a single word; an empty one is none.
fn words(text: &str) -> Result<Words, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text)
            .map(Words)
            .map_err(|_other| "write [\"WORD\", ...], or one word".to_owned());
    }
    Ok(Words(if text.is_empty() {
        Vec::new()
    } else {
        vec![text.to_owned()]
    }))
}

/// Makes the image and prints its digest.
pub(crate) fn run(arguments: CommitArguments, printer: Printer) -> Result<()> {
    let engine = Engine::with_store(location::open(&arguments.store)?);
    let json = arguments.json;
    let options = options(arguments)?;
    let screen = Screen::new(printer);
    let image = attend(&screen, engine.commit(&options, &screen))?;
    printer.note(&format!("Committed {}", image.name));
    if json {
        return printer.document(&Summary::new(&image, None));
    }
    printer.data(&format!("{}\n", digest(&image)))
}

fn options(arguments: CommitArguments) -> Result<CommitOptions> {
    let CommitArguments {
        image,
        name,
        command,
        env,
        workdir,
        user,
        entrypoint,
        cmd,
        label,
        message,
        program,
        ..
    } = arguments;
    let image: Source = image.parse()?;
    if image == Source::Host {
        return Err(Error::CommitHost);
    }
    Ok(CommitOptions {
        pull: program.policy(),
        pull_options: program.pull_options()?,
        tags: vec![tag(&name)?],
        env: environment::collect(&[] as &[&std::path::Path], &env)?,
        working_directory: workdir,
        user,
        entrypoint: entrypoint.map(|words| words.0),
        cmd: cmd.map(|words| words.0),
        labels: label,
        message,
        network: Network::from(program.network),
        emulate_root: !program.no_root_emulation,
        limits: program.limits(),
        created: program.created()?,
        ..CommitOptions::new(image, command)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_an_array_or_one() {
        let table = [
            ("sh", Some(vec!["sh"])),
            (r#"["a b", "c"]"#, Some(vec!["a b", "c"])),
            ("[]", Some(vec![])),
            ("", Some(vec![])),
            ("[1]", None),
            ("[", None),
        ];
        for (text, expected) in table {
            let found = words(text).ok().map(|words| words.0);
            let expected =
                expected.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
