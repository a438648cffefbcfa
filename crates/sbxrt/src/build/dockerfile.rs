//! Dockerfiles: from their text to instructions.
//!
//! A pure function, [`Dockerfile::parse`], by the rules of `BuildKit`'s parser: continuation lines, the directives
//! `escape` and `syntax`, comments, here-documents, flags, shell and exec form. Variables are not expanded here, since
//! what they are is known only when the instructions before have been carried out.
//!
//! What is not supported is an error at its line rather than something that is passed over: `RUN --mount`, remote
//! sources of `ADD`, `COPY --parents`. What changes nothing in an OCI image (`HEALTHCHECK`, `ONBUILD`, `MAINTAINER`)
//! is noted.

mod lines;
mod words;

use std::fmt;

use lines::Line;
pub(crate) use lines::is_heredoc;
use words::{raw_words, take_flags};

/// The most bytes of a Dockerfile, here-documents included.
pub(crate) const MAXIMUM_BYTES: usize = 1 << 20;
/// The most instructions of a Dockerfile; an image may have no more layers than 500.
const MAXIMUM_INSTRUCTIONS: usize = 10_000;
/// How much of a line a message shows.
const SHOWN: usize = 160;

/// A Dockerfile that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dockerfile {
    /// The character that escapes the one behind it: `\`, or a backtick.
    pub escape: char,
    /// The instructions in the order of the file.
    pub instructions: Vec<Instruction>,
}

/// An instruction and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instruction {
    /// The line that it begins on, counted from 1.
    pub line: usize,
    /// Its text on one line, without comments.
    pub text: String,
    /// What it says.
    pub kind: InstructionKind,
}

/// What an instruction says. Words are as they were written: quoted, escaped, with their variables.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstructionKind {
    /// `FROM [--platform=PLATFORM] IMAGE [AS NAME]`
    From {
        /// The image, or the name of a stage.
        image: String,
        /// The name of the stage that begins, in lower case.
        name: Option<String>,
        /// `--platform`.
        platform: Option<String>,
    },
    /// `RUN`
    Run {
        /// What is executed.
        command: CommandLine,
        /// The here-documents that belong to it.
        heredocs: Vec<Heredoc>,
        /// `--network`.
        network: Option<String>,
    },
    /// `COPY` or `ADD`
    Copy(CopyInstruction),
    /// `ENV`
    Env(Vec<(String, String)>),
    /// `ARG`
    Arg(Vec<(String, Option<String>)>),
    /// `LABEL`
    Label(Vec<(String, String)>),
    /// `WORKDIR`
    Workdir(String),
    /// `USER`
    User(String),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `CMD`
    Cmd(CommandLine),
    /// `SHELL`
    Shell(Vec<String>),
    /// `EXPOSE`
    Expose(Vec<String>),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// An instruction that leaves no trace in an OCI image; the reason.
    Ignored(&'static str),
}

/// `COPY` or `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyInstruction {
    /// Whether it is `ADD`, which unpacks archives.
    pub is_add: bool,
    /// What is copied. Names of here-documents are not among them.
    pub sources: Vec<String>,
    /// Files that stand in the Dockerfile itself.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub destination: String,
    /// `--from`: a stage or an image.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
}

/// A program and its arguments, in one of the two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// A text for the shell.
    Shell(String),
    /// Words: `["program", "argument"]`.
    Exec(Vec<String>),
}

/// A file within the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heredoc {
    /// The word that ends it.
    pub name: String,
    /// What is in it.
    pub content: String,
    /// Whether its variables are expanded: the word was not quoted.
    pub expand: bool,
}

/// What is wrong with a Dockerfile, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DockerfileError {
    /// The file, as its reader calls it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What the line says, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl DockerfileError {
    pub(crate) fn new(line: usize, text: &str, reason: impl Into<String>) -> Self {
        let mut shown: String = text.trim().chars().take(SHOWN).collect();
        if shown.len() < text.trim().len() {
            shown.push('…');
        }
        Self {
            file: "Dockerfile".to_owned(),
            line,
            text: shown,
            reason: reason.into(),
            hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn in_file(mut self, file: &str) -> Self {
        file.clone_into(&mut self.file);
        self
    }
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file, self.line, self.reason)
    }
}

impl std::error::Error for DockerfileError {}

type Parsed<T> = Result<T, DockerfileError>;

impl Dockerfile {
    /// Reads a Dockerfile. `file` is what messages call it.
    ///
    /// It takes no more than 1 MiB and 10,000 instructions.
    ///
    /// # Errors
    ///
    /// Names the line that cannot be understood, and why.
    ///
    /// ```
    /// use sbxrt::build::Dockerfile;
    ///
    /// let dockerfile = Dockerfile::parse("Dockerfile", b"FROM scratch\nCOPY hello /\n")?;
    /// assert_eq!(dockerfile.instructions.len(), 2);
    /// let error = Dockerfile::parse("Dockerfile", b"FROM scratch\nCPOY hello /\n").unwrap_err();
    /// assert_eq!(error.to_string(), "Dockerfile:2: unknown instruction CPOY");
    /// # Ok::<(), sbxrt::build::DockerfileError>(())
    /// ```
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, DockerfileError> {
        parse(bytes).map_err(|error| error.in_file(file))
    }
}

fn parse(bytes: &[u8]) -> Parsed<Dockerfile> {
    if bytes.len() > MAXIMUM_BYTES {
        return Err(DockerfileError::new(
            1,
            "",
            format!("it is longer than {MAXIMUM_BYTES} bytes"),
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + good.split(|byte| *byte == b'\n').count().saturating_sub(1);
        DockerfileError::new(line, "", "the line is not UTF-8")
    })?;
    let (directives, lines) = lines::read(text)?;
    if lines.len() > MAXIMUM_INSTRUCTIONS {
        return Err(DockerfileError::new(
            1,
            "",
            format!("it has more than {MAXIMUM_INSTRUCTIONS} instructions"),
        ));
    }
    let escape = directives.escape;
    let instructions = lines
        .into_iter()
        .map(|line| instruction(line, escape))
        .collect::<Parsed<Vec<_>>>()?;
    let first = instructions
        .iter()
        .find(|instruction| !matches!(instruction.kind, InstructionKind::Arg(_)));
    match first {
        None => Err(DockerfileError::new(1, "", "there is no FROM in it")
            .with_hint("begin with FROM IMAGE, or FROM scratch for an image with nothing in it")),
        Some(Instruction {
            kind: InstructionKind::From { .. },
            ..
        }) => Ok(Dockerfile {
            escape,
            instructions,
        }),
        Some(other) => {
            Err(
                DockerfileError::new(other.line, &other.text, "only ARG may come before FROM")
                    .with_hint("begin with FROM IMAGE"),
            )
        }
    }
}

/// A line on its way to be an instruction.
struct Reader {
    line: usize,
    text: String,
    name: String,
    flags: Vec<String>,
    rest: String,
    heredocs: Vec<Heredoc>,
    escape: char,
}

fn instruction(line: Line, escape: char) -> Parsed<Instruction> {
    let (name, arguments) = line
        .text
        .split_once(char::is_whitespace)
        .unwrap_or((&line.text, ""));
    let name = name.to_ascii_uppercase();
    let (flags, rest) = take_flags(arguments, escape);
    let reader = Reader {
        line: line.number,
        rest: rest.trim().to_owned(),
        text: line.text.clone(),
        name,
        flags,
        heredocs: line.heredocs,
        escape,
    };
    let kind = reader.kind()?;
    Ok(Instruction {
        line: line.number,
        text: line.text,
        kind,
    })
}

impl Reader {
    fn error(&self, reason: impl Into<String>) -> DockerfileError {
        DockerfileError::new(self.line, &self.text, reason)
    }

    fn kind(mut self) -> Parsed<InstructionKind> {
        use InstructionKind as Kind;
        let name = self.name.clone();
        if let Some(reason) = ignored(&name) {
            return Ok(Kind::Ignored(reason));
        }
        match name.as_str() {
            "FROM" => return self.from(),
            "RUN" => return self.run(),
            "COPY" | "ADD" => return self.copy(),
            _ => {}
        }
        let known = [
            "ENV",
            "ARG",
            "LABEL",
            "WORKDIR",
            "USER",
            "ENTRYPOINT",
            "CMD",
            "SHELL",
            "EXPOSE",
            "VOLUME",
            "STOPSIGNAL",
        ];
        if !known.contains(&name.as_str()) {
            return Err(self.unknown(&known));
        }
        self.no_more_flags()?;
        if self.rest.is_empty() && !matches!(name.as_str(), "CMD" | "ENTRYPOINT") {
            return Err(self.error(format!("{name} needs an argument")));
        }
        let rest = std::mem::take(&mut self.rest);
        Ok(match name.as_str() {
            "ENV" => Kind::Env(self.pairs(&rest)?),
            "LABEL" => Kind::Label(self.pairs(&rest)?),
            "ARG" => Kind::Arg(self.arguments(&rest)?),
            "WORKDIR" => Kind::Workdir(rest),
            "USER" => Kind::User(rest),
            "STOPSIGNAL" => Kind::StopSignal(rest),
            "ENTRYPOINT" => Kind::Entrypoint(self.command(rest)?),
            "CMD" => Kind::Cmd(self.command(rest)?),
            "SHELL" => match self.json(&rest)? {
                Some(words) if !words.is_empty() => Kind::Shell(words),
                _ => {
                    return Err(self
                        .error("SHELL takes the exec form only")
                        .with_hint("write SHELL [\"/bin/bash\", \"-c\"]"));
                }
            },
            "EXPOSE" => Kind::Expose(blank_separated(&rest)),
            // VOLUME, the last of those that are known.
            _ => {
                let volumes = match self.json(&rest)? {
                    Some(words) => words,
                    None => blank_separated(&rest),
                };
                if volumes.iter().any(|volume| volume.trim().is_empty()) {
                    return Err(self.error("VOLUME must not be empty"));
                }
                Kind::Volume(volumes)
            }
        })
    }

    fn unknown(&self, known: &[&str]) -> DockerfileError {
        let more = ["FROM", "RUN", "COPY", "ADD"];
        let near = known
            .iter()
            .chain(&more)
            .map(|candidate| (distance(candidate, &self.name), *candidate))
            .filter(|(distance, _)| *distance <= 2)
            .min_by_key(|(distance, _)| *distance);
        let shown: String = self.name.chars().take(40).collect();
        let error = self.error(format!("unknown instruction {shown}"));
        match near {
            Some((_, near)) => error.with_hint(format!("did you mean {near}?")),
            None => error
                .with_hint("a line that goes on must end in the escape character, by default \\"),
        }
    }

    /// Takes a flag with a value.
    fn flag(&mut self, name: &str) -> Parsed<Option<String>> {
        let prefix = format!("--{name}");
        let mut found = None;
        let mut index = 0;
        while index < self.flags.len() {
            let value = match self.flags[index].strip_prefix(&prefix) {
                Some("") => {
                    return Err(self
                        .error(format!("{prefix} needs a value"))
                        .with_hint(format!("write {prefix}=VALUE")));
                }
                Some(rest) => rest.strip_prefix('=').map(str::to_owned),
                None => None,
            };
            if let Some(value) = value {
                self.flags.remove(index);
                if found.replace(value).is_some() {
                    return Err(self.error(format!("{prefix} is given twice")));
                }
            } else {
                index += 1;
            }
        }
        Ok(found)
    }

    /// Takes a flag that is true where it is there.
    fn switch(&mut self, name: &str) -> bool {
        let before = self.flags.len();
        let spellings = [format!("--{name}"), format!("--{name}=true")];
        let off = format!("--{name}=false");
        self.flags.retain(|flag| *flag != off);
        let between = self.flags.len();
        self.flags.retain(|flag| !spellings.contains(flag));
        before >= between && between > self.flags.len()
    }

    fn no_more_flags(&self) -> Parsed<()> {
        let Some(flag) = self.flags.first() else {
            return Ok(());
        };
        let shown = flag.split('=').next().unwrap_or(flag);
        let hint = match shown {
            "--mount" => {
                "leave --mount out: COPY what is needed; build caches and secrets are not supported"
            }
            "--security" => "leave it out; a build never gets more rights than its caller has",
            "--parents" => "copy each directory by an instruction of its own",
            "--exclude" => "name what is not to be copied in .dockerignore",
            "--checksum" | "--keep-git-dir" => "fetch the file yourself and COPY it",
            "--interval" | "--timeout" | "--retries" => "HEALTHCHECK flags stand before CMD",
            _ => "flags stand before the other arguments, as --name=value",
        };
        Err(self
            .error(format!("{} does not support {shown}", self.name))
            .with_hint(hint))
    }

    fn from(mut self) -> Parsed<InstructionKind> {
        let platform = self.flag("platform")?;
        self.no_more_flags()?;
        let words = blank_separated(&self.rest);
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => (image, Some(name)),
            _ => {
                return Err(self
                    .error("FROM takes an image, or an image and a name")
                    .with_hint("write FROM IMAGE or FROM IMAGE AS NAME"));
            }
        };
        let name = name.map(|name| name.to_ascii_lowercase());
        if let Some(name) = &name {
            let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
            let is_name = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            };
            if !begins_well || !name.bytes().all(is_name) || name.len() > 128 {
                return Err(self.error(format!("{name:?} cannot be the name of a stage")).with_hint(
                    "a name begins with a letter and goes on with letters, digits, '-', '_' and '.'",
                ));
            }
            if name == "scratch" || name == "context" {
                return Err(self.error(format!("the name {name} is reserved")));
            }
        }
        Ok(InstructionKind::From {
            image: image.clone(),
            name,
            platform,
        })
    }

    fn run(mut self) -> Parsed<InstructionKind> {
        let network = self.flag("network")?;
        if let Some(network) = &network
            && !["none", "default", "host"].contains(&network.as_str())
        {
            return Err(self
                .error(format!("unknown network {network:?}"))
                .with_hint("write none, default or host"));
        }
        self.no_more_flags()?;
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return Err(self.error("RUN needs a command"));
        }
        let command = self.command(rest)?;
        if command == CommandLine::Exec(Vec::new()) {
            return Err(self.error("RUN needs a command"));
        }
        Ok(InstructionKind::Run {
            command,
            heredocs: self.heredocs,
            network,
        })
    }

    fn copy(mut self) -> Parsed<InstructionKind> {
        let is_add = self.name == "ADD";
        let from = if is_add { None } else { self.flag("from")? };
        let chown = self.flag("chown")?;
        let chmod = self.flag("chmod")?;
        // It asks for a layer that does not depend on what is below, which concerns caches only.
        let _link = self.switch("link");
        self.no_more_flags()?;
        let mut words = match self.json(&self.rest)? {
            Some(words) => words,
            None => blank_separated(&self.rest),
        };
        let destination = words.pop();
        if !self.heredocs.is_empty() {
            words.retain(|word| !is_heredoc(word));
        }
        let Some(destination) =
            destination.filter(|_| !words.is_empty() || !self.heredocs.is_empty())
        else {
            return Err(self
                .error(format!("{} needs a source and a destination", self.name))
                .with_hint(format!("write {} SOURCE... DESTINATION", self.name)));
        };
        if words.iter().any(String::is_empty) || destination.is_empty() {
            return Err(self.error("a path must not be empty"));
        }
        if is_add && let Some(remote) = words.iter().find(|word| is_remote(word)) {
            return Err(self
                .error(format!("ADD {remote}: remote sources are not fetched"))
                .with_hint(
                    "fetch it yourself, check it and COPY it; or RUN a program that fetches it, with --network host",
                ));
        }
        if (words.len() + self.heredocs.len()) > 1
            && !destination.ends_with('/')
            && destination != "."
        {
            let variable = destination.contains('$');
            if !variable {
                return Err(self
                    .error("with more than one source the destination must be a directory")
                    .with_hint(format!("write {destination}/")));
            }
        }
        Ok(InstructionKind::Copy(CopyInstruction {
            is_add,
            sources: words,
            heredocs: self.heredocs,
            destination,
            from,
            chown,
            chmod,
        }))
    }

    /// Reads the exec form where it is one, else takes the text for the shell, as Docker does.
    fn command(&self, rest: String) -> Parsed<CommandLine> {
        Ok(match self.json(&rest)? {
            Some(words) => CommandLine::Exec(words),
            None => CommandLine::Shell(rest),
        })
    }

    /// Reads an array of strings; `None` where the text is no JSON array.
    fn json(&self, text: &str) -> Parsed<Option<Vec<String>>> {
        if !text.starts_with('[') {
            return Ok(None);
        }
        let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
            return Ok(None);
        };
        let words = values.into_iter().map(|value| match value {
            serde_json::Value::String(word) if !word.contains('\0') => Ok(word),
            other => Err(self
                .error(format!(
                    "the exec form takes strings only, and {other} is none"
                ))
                .with_hint("put it in double quotes")),
        });
        words.collect::<Parsed<Vec<_>>>().map(Some)
    }

    /// Reads `NAME=VALUE ...`, or the old form `NAME VALUE`.
    fn pairs(&self, rest: &str) -> Parsed<Vec<(String, String)>> {
        let words = raw_words(rest, self.escape);
        let is_old = words.first().is_some_and(|word| !word.contains('='));
        if is_old {
            let (name, value) = rest.split_once(char::is_whitespace).ok_or_else(|| {
                self.error(format!("{} needs a name and a value", self.name))
                    .with_hint(format!("write {} NAME=VALUE", self.name))
            })?;
            return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
        }
        let pairs = words.iter().map(|word| match word.split_once('=') {
            Some(("", _)) => Err(self.error("a name must not be empty")),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(self
                .error(format!("{word:?} has no ="))
                .with_hint("write NAME=VALUE, and put a value with blanks in quotes")),
        });
        pairs.collect()
    }

    fn arguments(&self, rest: &str) -> Parsed<Vec<(String, Option<String>)>> {
        let words = raw_words(rest, self.escape);
        let arguments = words.iter().map(|word| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() {
                return Err(self.error("a name must not be empty"));
            }
            Ok((name.to_owned(), value))
        });
        arguments.collect()
    }
}

fn ignored(name: &str) -> Option<&'static str> {
    Some(match name {
        "HEALTHCHECK" => "an OCI image has no place for it, and sbxrt runs no health checks",
        "ONBUILD" => "an OCI image has no place for it",
        "MAINTAINER" => "it is obsolete; write LABEL org.opencontainers.image.authors=…",
        _ => return None,
    })
}

fn is_remote(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    ["http://", "https://", "ftp://", "git://", "ssh://", "git@"]
        .iter()
        .any(|scheme| lower.starts_with(scheme))
}

fn blank_separated(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// How many letters must be changed, added, left out or swapped with their neighbour to make one word of the other.
fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len().abs_diff(right.len()) > 2 {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let change = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests;
