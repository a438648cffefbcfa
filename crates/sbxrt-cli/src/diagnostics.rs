//! Errors as people and programs read them: a message, its causes, and what to type next.
//!
//! Hints live here, not in the libraries: what to type is known only to the command line. What an image error says by
//! itself is taken over, except where a flag or command of ours says it better.

use std::error::Error as _;
use std::fmt::Write as _;

use sbxrt::probe::{Explanation, explain};
use sbxrt::{Failure, RuntimeError};
use serde::Serialize;

use crate::error::Error;

/// An error, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Diagnostic {
    pub(crate) message: String,
    /// From the nearest to the deepest.
    pub(crate) causes: Vec<String>,
    pub(crate) hint: Option<String>,
}

impl Diagnostic {
    /// Describes `error`.
    pub(crate) fn new(error: &Error) -> Self {
        let hint = hint(error);
        if let Error::Engine(sbxrt::Error::Runtime(error)) = error {
            return Self {
                hint,
                ..of_runtime(error)
            };
        }
        if let Error::Engine(sbxrt::Error::Dockerfile(error)) = error {
            let line = (!error.text.is_empty()).then(|| format!("the line is: {}", error.text));
            return Self {
                message: error.to_string(),
                causes: line.into_iter().collect(),
                hint,
            };
        }
        let message = match error {
            Error::Engine(error @ sbxrt::Error::Instruction { .. }) => {
                format!("failed to carry out {error}")
            }
            // These messages begin with a verb.
            Error::Engine(
                error @ (sbxrt::Error::Io { .. }
                | sbxrt::Error::File { .. }
                | sbxrt::Error::Image(sbxrt::image::Error::Io { .. })),
            ) => format!("failed to {error}"),
            error => error.to_string(),
        };
        Self {
            message,
            causes: causes(error.source()),
            hint,
        }
    }

    /// Writes it for people.
    pub(crate) fn render(&self, style: Style) -> String {
        let Style { error, hint, reset } = style;
        let mut text = format!("{error}error{reset}: {}\n", harmless(&self.message));
        // Writing to a string cannot fail.
        for cause in &self.causes {
            let _ = writeln!(text, "  Caused by: {}", harmless(cause));
        }
        if let Some(words) = &self.hint {
            let _ = writeln!(text, "\n{hint}hint{reset}: {}", harmless(words));
        }
        text
    }
}

/// A registry or an image may have had a say in it, and a terminal obeys what it is shown.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// What is put around the words that begin a line; they say the same without it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    error: &'static str,
    hint: &'static str,
    reset: &'static str,
}

impl Style {
    pub(crate) const PLAIN: Self = Self {
        error: "",
        hint: "",
        reset: "",
    };
    pub(crate) const COLORED: Self = Self {
        error: "\x1b[1;31m",
        hint: "\x1b[1;36m",
        reset: "\x1b[0m",
    };
}

fn causes(first: Option<&(dyn std::error::Error + 'static)>) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = first;
    while let Some(error) = next {
        let text = match error.downcast_ref::<std::io::Error>() {
            Some(error) => describe(error),
            None => error.to_string(),
        };
        // Libraries often repeat their cause in their own message.
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = error.source();
    }
    causes
}

/// With the symbolic name in front, as strace prints it and as people search for it.
fn describe(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let errno = nix::errno::Errno::from_raw(number);
            format!("{errno:?}: {}", errno.desc())
        }
        None => error.to_string(),
    }
}

fn of_runtime(error: &RuntimeError) -> Diagnostic {
    let (message, causes) = match error {
        RuntimeError::Start(Failure {
            step,
            subject,
            reason,
            ..
        }) => (
            format!("failed to {step}"),
            vec![format!("{subject}: {reason}")],
        ),
        RuntimeError::Launcher { step, source } => (
            "failed to start the launcher".to_owned(),
            vec![format!("{step}: {}", describe(source))],
        ),
        RuntimeError::Channel(_) => (format!("failed to {error}"), causes(error.source())),
        error => (error.to_string(), causes(error.source())),
    };
    Diagnostic {
        message,
        causes,
        hint: None,
    }
}

/// What to type next.
fn hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::Engine(error) => return engine_hint(error),
        Error::Context { reason: "missing", .. } => {
            "name the directory that has the Dockerfile and the files to copy".to_owned()
        }
        Error::Context { .. } => {
            "fetch or unpack it yourself and name the directory; `-f -` reads a Dockerfile from standard input".to_owned()
        }
        Error::ForeignPlatform { host, .. } => {
            format!("leave --platform out, or write --platform {host}")
        }
        Error::NoTag { .. } => "write a name such as my-tools or registry.example.org/me/tools:1".to_owned(),
        Error::SourceDateEpoch { .. } => {
            "write seconds since 1970, such as $(git log -1 --format=%ct)".to_owned()
        }
        Error::CommitHost => "name an image such as debian:12".to_owned(),
        Error::NoStore => "name a directory with --store or SBXRT_STORE".to_owned(),
        Error::Volume { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "a volume's source is never created; make it first, or correct its path".to_owned()
        }
        Error::Volume { path, source }
            if matches!(source.raw_os_error(), Some(nix::libc::ENOTCONN | nix::libc::ESTALE)) =>
        {
            format!(
                "whoever served this file system is gone; unmount it, with `fusermount -u {}` where it is your own",
                path.display()
            )
        }
        Error::Volume { path, .. } => {
            format!(
                "sbxrt sees no more than you do; `namei -l {}` shows what is in the way",
                path.display()
            )
        }
        Error::NoPlaceForOutput { path } => format!(
            "write --output {}:COPY, name a directory with --output-dir, or list it with --json alone",
            path.display()
        ),
        Error::NotARegistry { .. } => {
            "write HOST[:PORT], such as ghcr.io or registry.example.org:5000".to_owned()
        }
        Error::NoUsername => "name the user with --username".to_owned(),
        Error::NoPassword => {
            "type it at a terminal, or pass it on standard input with --password-stdin".to_owned()
        }
        Error::NotLoggedIn {
            elsewhere: Some(path),
            ..
        } => format!(
            "{} has credentials for it; `docker logout` takes them out",
            path.display()
        ),
        Error::AuthFile { path, .. } => format!("mend or remove {}", path.display()),
        Error::NoDestination { .. } => {
            "name a destination behind it, such as docker://REGISTRY/REPOSITORY:TAG or oci-archive:FILE".to_owned()
        }
        Error::SameFile { .. } => "name another file for one of them".to_owned(),
        Error::FileInCopy { .. } => {
            "name a file outside of it; the program could put one of its own there".to_owned()
        }
        Error::NoCommand => "write a command behind the image".to_owned(),
        Error::Limits { .. } => {
            "write --memory SIZE --memory-swap SIZE, the second at least as large as the first"
                .to_owned()
        }
        Error::ResultsExist { .. } => {
            "add --resume to run only what has no result there, or name another file".to_owned()
        }
        Error::NothingRuns { .. } => {
            "their lines in the results say why; `sbxrt check` says what this machine lacks".to_owned()
        }
        Error::ResultsBusy { .. } => "wait until it is over, or name another file".to_owned(),
        Error::NotResults { .. } => {
            "name a file that --output has written, or a new one; only its last line may be torn".to_owned()
        }
        Error::NotAnItem { .. } => {
            "write one JSON object a line, such as {\"command\": [\"true\"]}".to_owned()
        }
        Error::NotATerminal => "leave out -t where input comes from a pipe or file".to_owned(),
        _ => return None,
    })
}

fn engine_hint(error: &sbxrt::Error) -> Option<String> {
    use sbxrt::Error;
    Some(match error {
        Error::Image(error) => return image_hint(error),
        Error::Source(error) => return error.hint(),
        Error::Runtime(error) => return runtime_hint(error),
        Error::Dockerfile(error) => return error.hint.clone(),
        Error::Instruction { source, .. } => return engine_hint(source),
        Error::ProgramFailed { .. } => {
            "what it said is above; a program that fetches something needs --network host"
                .to_owned()
        }
        Error::File {
            step: "read",
            source,
            ..
        } if source.kind() == std::io::ErrorKind::NotFound => {
            "name another Dockerfile with -f FILE, or `-f -` for standard input".to_owned()
        }
        Error::NotPresent { name } => {
            format!("leave out --pull never, or type `sbxrt pull {name}` first")
        }
        Error::Invalid { field, .. } if field == "command" => {
            "write a command behind the image".to_owned()
        }
        _ => return None,
    })
}

fn image_hint(error: &sbxrt::image::Error) -> Option<String> {
    use sbxrt::image::Error;
    Some(match error {
        Error::PlainHttpRefused { .. } => {
            "if it really has no TLS and the network is trusted, add --plain-http, or `insecure = true` for it to registries.conf".to_owned()
        }
        Error::Unauthorized { image, .. } => format!(
            "check the name; for a private image type `sbxrt login {}`",
            registry_of(image)
        ),
        Error::RegistryFailed { status: 429, image, .. } => format!(
            "it limits how often one may pull; wait, log in with `sbxrt login {}`, or name a mirror in registries.conf",
            registry_of(image)
        ),
        Error::TlsExpected { registry } => format!(
            "leave --plain-http out; for a registry on this machine put its authority's certificate into ~/.config/containers/certs.d/{registry}/ca.crt"
        ),
        Error::TlsFailed { registry, reason, .. } if reason.contains("UnknownIssuer") => format!(
            "if it has an authority of its own, put that one's certificate into ~/.config/containers/certs.d/{registry}/ca.crt"
        ),
        Error::TlsFailed { registry, reason, .. } if reason.contains("ertificateRequired") || reason.contains("present a certificate") => format!(
            "it wants to know who we are: put a certificate and its key into ~/.config/containers/certs.d/{registry}/client.cert and client.key"
        ),
        Error::TlsFailed { .. } => "its certificate has to be mended there; sbxrt does not go on without".to_owned(),
        Error::RegistryBlocked { path, .. } => format!("{} is the site's word; ask who wrote it", path.display()),
        Error::CredentialHelper { helper, path, .. } => format!(
            "mend docker-credential-{helper}, take it out of {}, or name another file with REGISTRY_AUTH_FILE",
            path.display()
        ),
        Error::InvalidSettings { path, .. } => format!("mend or remove {}", path.display()),
        Error::InvalidProxy { variable, .. } => format!("write {variable}=http://HOST:PORT, or leave it empty"),
        Error::PlatformNotFound { available, .. } => {
            format!("ask for one that there is, such as --platform {}", available.first()?)
        }
        Error::StoreFull { .. } => {
            "remove images with `sbxrt rmi IMAGE` or `sbxrt gc --unused-for 7d`, or choose a larger disk with --store or SBXRT_STORE".to_owned()
        }
        Error::FileSystemUnsupported { .. } => {
            "choose a directory on a local disk (ext4, xfs, btrfs) or a tmpfs with --store or SBXRT_STORE".to_owned()
        }
        Error::StoreVersion { .. } => "choose another directory with --store or SBXRT_STORE".to_owned(),
        Error::Io { operation: "create", .. } => {
            "choose a directory that you may write to with --store or SBXRT_STORE".to_owned()
        }
        Error::ImageInUse { image } => format!(
            "wait until the sandbox has ended, or type `sbxrt rmi --force {image}`, which leaves its files until then"
        ),
        Error::Offline { image, .. } => format!(
            "type `sbxrt pull {image}` where there is a network, or name a store that has it with --additional-store"
        ),
        Error::Busy { .. } => "another sbxrt pulls or removes images there; try again when it is done".to_owned(),
        Error::UnknownImage { .. } => "`sbxrt images` lists the images that there are".to_owned(),
        // The library speaks of its own settings, which have no flag.
        Error::LimitExceeded { .. } => return None,
        other => return other.hint(),
    })
}

/// The registry that an image's name begins with.
fn registry_of(image: &str) -> &str {
    image.split('/').next().unwrap_or(image)
}

fn runtime_hint(error: &RuntimeError) -> Option<String> {
    let check = "`sbxrt check` says what this machine lacks and how to mend it";
    let errno = match error {
        RuntimeError::Channel(error) => error.raw_os_error(),
        RuntimeError::Start(failure) => failure.errno,
        _ => None,
    };
    if errno == Some(nix::libc::ETOOMANYREFS) {
        return Some(
            "programs of yours, in sandboxes or not, have more descriptors on their way in sockets than `ulimit -Hn` says; \
             end the one that hoards them, or start sbxrt under a higher hard limit"
                .to_owned(),
        );
    }
    if let RuntimeError::Start(failure) = error
        && failure.step == "put a file into the sandbox"
    {
        return Some(
            "it is written with the program's rights and limits: name another path, or allow more with --scratch-size"
                .to_owned(),
        );
    }
    if let RuntimeError::Start(failure) = error
        && errno == Some(nix::libc::EDQUOT)
        && failure.subject == "join a new session keyring"
    {
        return Some(
            "each sbxrt of yours, and each run without the default filter, takes one of the keys that the kernel \
             allows a user; as root, type `sysctl kernel.keys.maxkeys=4000`"
                .to_owned(),
        );
    }
    if let Some(Explanation { reason, fix }) = explain(error) {
        return Some(match fix {
            Some(fix) => format!("{reason}; {fix}"),
            None => reason,
        });
    }
    Some(match error {
        RuntimeError::Launcher { .. } | RuntimeError::LauncherGone => check.to_owned(),
        // A call that this kernel lacks, or a filter around sbxrt hides: `check` tells which, whatever it was for.
        RuntimeError::Start(failure)
            if matches!(failure.errno, Some(nix::libc::ENOSYS | nix::libc::EPERM)) =>
        {
            check.to_owned()
        }
        RuntimeError::Start(failure) => match failure.step.as_str() {
            "hold a limit" if failure.errno.is_none() => format!(
                "leave --require {}=… out; `sbxrt check` tells what it takes to have a cgroup here",
                failure.subject
            ),
            "open a volume" => {
                "the source must be there, readable for you, and the same for every process"
                    .to_owned()
            }
            "use a directory as the root file system" => {
                "copy it, or name one without mounts below; host: is this machine's own programs"
                    .to_owned()
            }
            "prepare an output" if failure.errno == Some(nix::libc::EEXIST) => {
                "choose another name for the copy, or add --overwrite".to_owned()
            }
            "prepare an output" => {
                "name a path inside, and for its copy a directory that you may write to".to_owned()
            }
            "resolve the user" => "write numbers, such as -u 1000:1000".to_owned(),
            "open a layer of the image" => {
                "the store is damaged; type `sbxrt verify --repair`, and pull the image again"
                    .to_owned()
            }
            "mount a volume" | "mount a tmpfs" | "make the working directory" => return None,
            _ => check.to_owned(),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn start(step: &str, subject: &str, reason: &str) -> Error {
        Error::Engine(sbxrt::Error::Runtime(
            Failure::reason(step, subject, reason).into(),
        ))
    }

    #[test]
    fn errors_are_rendered_with_causes_and_hints() {
        let errors = [
            Error::Engine(sbxrt::Error::Runtime(RuntimeError::Launcher {
                step: "clone(CLONE_NEWUSER|CLONE_NEWNS|CLONE_NEWPID)".to_owned(),
                source: io::Error::from_raw_os_error(1),
            })),
            start(
                "hold a limit",
                "memory",
                "cgroup is required, but only watchdog can hold it here",
            ),
            start(
                "resolve the user",
                "nobody",
                "no such user in the image's /etc/passwd; give a number to do without",
            ),
            start(
                "assemble the root file system",
                "mount(\"overlay\", 3 layers, userxattr)",
                "EPERM: Operation not permitted",
            ),
            Error::Engine(sbxrt::Error::Runtime(
                Failure::new(
                    "open a volume",
                    "/srv/secret",
                    io::Error::from_raw_os_error(13),
                )
                .into(),
            )),
            Error::Engine(sbxrt::Error::Runtime(RuntimeError::Channel(
                io::Error::from_raw_os_error(nix::libc::ETOOMANYREFS),
            ))),
            Error::Engine(sbxrt::Error::Runtime(
                Failure::new(
                    "start the program",
                    "join a new session keyring",
                    io::Error::from_raw_os_error(nix::libc::EDQUOT),
                )
                .into(),
            )),
            Error::Engine(sbxrt::Error::Image(sbxrt::image::Error::PlatformNotFound {
                image: "docker.io/library/busybox:latest".to_owned(),
                wanted: "linux/vax".to_owned(),
                available: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            })),
            Error::Engine(sbxrt::Error::Image(sbxrt::image::Error::StoreFull {
                path: "/store/tmp/x".into(),
                free_files: 12,
                free: 12,
            })),
            Error::Engine(sbxrt::Error::Image(
                sbxrt::image::Error::RegistryUnreachable {
                    registry: "registry.example:5000".to_owned(),
                    image: "registry.example:5000/a:latest".to_owned(),
                    source: Box::new(io::Error::from_raw_os_error(111)),
                },
            )),
            Error::Engine(sbxrt::Error::Image(sbxrt::image::Error::Io {
                operation: "create",
                path: "/nonexistent/store".into(),
                source: io::Error::from_raw_os_error(13),
            })),
            Error::Engine(sbxrt::Error::NotPresent {
                name: "docker.io/library/busybox:latest".to_owned(),
            }),
            Error::Engine(sbxrt::Error::Image(sbxrt::image::Error::Unauthorized {
                image: "registry.example:5000/a:latest".to_owned(),
                reason: "it does not accept the credentials".to_owned(),
            })),
            Error::Engine(sbxrt::Error::Image(sbxrt::image::Error::TlsFailed {
                registry: "registry.example:5000".to_owned(),
                image: "registry.example:5000/a:latest".to_owned(),
                reason: "invalid peer certificate: UnknownIssuer".to_owned(),
            })),
            Error::Engine(sbxrt::Error::Image(sbxrt::image::Error::CredentialHelper {
                helper: "pass".to_owned(),
                registry: "registry.example:5000".to_owned(),
                path: "/home/u/.docker/config.json".into(),
                reason: "no keyring".to_owned(),
            })),
            Error::NotLoggedIn {
                registry: "registry.example".to_owned(),
                elsewhere: Some("/home/u/.docker/config.json".into()),
            },
            Error::Engine("./rootfs".parse::<sbxrt::Source>().unwrap_err().into()),
            Error::Volume {
                path: "/nonexistent".into(),
                source: io::Error::from_raw_os_error(2),
            },
            Error::NoPlaceForOutput { path: "out".into() },
            Error::EnvironmentLine {
                path: "env".into(),
                line: 3,
                reason: "write NAME=VALUE".to_owned(),
            },
            Error::Limits {
                reason: "--memory-swap is less than --memory, which is a part of it",
            },
            Error::NotATerminal,
            Error::Output {
                stream: "standard output",
                source: io::Error::from_raw_os_error(28),
            },
        ];
        let rendered: Vec<String> = errors
            .iter()
            .map(|error| Diagnostic::new(error).render(Style::PLAIN))
            .collect();
        insta::assert_snapshot!(rendered.join("--------\n"));
    }

    #[test]
    fn what_strangers_wrote_does_not_command_the_terminal() {
        let error = Error::EnvironmentLine {
            path: "env".into(),
            line: 1,
            reason: "\x1b[2J\r\n".to_owned(),
        };
        assert_eq!(
            Diagnostic::new(&error).render(Style::PLAIN),
            "error: env:1: \\u{1b}[2J\\r\\n\n"
        );
    }

    #[test]
    fn colour_only_adds_to_the_words() {
        let diagnostic = Diagnostic::new(&Error::NotATerminal);
        let mut colored = diagnostic.render(Style::COLORED);
        for code in ["\x1b[1;31m", "\x1b[1;36m", "\x1b[0m"] {
            colored = colored.replace(code, "");
        }
        assert_eq!(colored, diagnostic.render(Style::PLAIN));
    }
}
