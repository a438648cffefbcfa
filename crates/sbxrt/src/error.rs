//! What can go wrong that is not the program's own doing.

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of sbxrt. What the program does, however badly, is an [`Output`](crate::Output) instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image could not be found, fetched, verified or unpacked.
    #[error(transparent)]
    Image(#[from] sbxrt_image::Error),
    /// The image's name cannot be understood.
    #[error(transparent)]
    Source(#[from] sbxrt_image::InvalidSource),
    /// The sandbox could not be set up; nothing of the program ran.
    #[error(transparent)]
    Runtime(#[from] sbxrt_runtime::Error),
    /// The request itself cannot be carried out.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// What is wrong, in the words of the API.
        field: String,
        /// Why.
        reason: String,
    },
    /// A profile of system calls cannot be used.
    #[error("the seccomp profile cannot be used")]
    Seccomp(#[from] sbxrt_runtime::seccomp::Error),
    /// An image is not in the store and may not be fetched.
    #[error("{name} is not in the store, and pulling is off")]
    NotPresent {
        /// The canonical name.
        name: String,
    },
    /// A Dockerfile cannot be understood or carried out.
    #[error(transparent)]
    Dockerfile(Box<crate::build::DockerfileError>),
    /// An instruction of a Dockerfile could not be carried out.
    #[error("{file}:{line}: {text}")]
    Instruction {
        /// The Dockerfile, as its reader calls it.
        file: String,
        /// The line that the instruction begins on.
        line: usize,
        /// The instruction.
        text: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A program that a build ran has failed.
    #[error("the program {}", crate::build::ending(termination))]
    ProgramFailed {
        /// How it ended.
        termination: sbxrt_runtime::Termination,
    },
    /// A file of this machine cannot be used.
    #[error("{step} {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Reading or writing the program's streams failed on this side.
    #[error("{step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn io(step: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { step, source }
    }
}

impl From<crate::build::DockerfileError> for Error {
    fn from(error: crate::build::DockerfileError) -> Self {
        Self::Dockerfile(Box::new(error))
    }
}

impl From<std::io::Error> for Error {
    /// For callers whose `main` returns this type.
    fn from(source: std::io::Error) -> Self {
        Self::Io {
            step: "use the operating system",
            source,
        }
    }
}
