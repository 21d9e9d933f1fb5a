//! One public error type, grouped by what is at fault.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. One machine word wide; [`Error::kind`] tells the group.
#[derive(Debug)]
pub struct Error(Box<ErrorKind>);

/// The groups of errors. Every message names the object, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A weights file that cannot be read as safetensors or holds unusable tensors.
    #[error("weights {}: {problem}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A readable weights file that does not fit the network.
    #[error("weights {} do not fit {network}: {misfit}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// The network it was held against.
        network: String,
        /// The keys that differ.
        misfit: Misfit,
    },
    /// A name that is none of the known ones.
    #[error("unknown {what} `{name}`; known: {}", .known.join(", "))]
    UnknownName {
        /// What kind of thing was named.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names that would do.
        known: Vec<String>,
    },
    /// A layer that exists in the model's definition but cannot be explained.
    #[error("layer `{name}`: {problem}")]
    Layer {
        /// The layer's name.
        name: String,
        /// Why it cannot be used.
        problem: String,
    },
    /// A class that does not exist or is not named uniquely.
    #[error("class `{class}`: {problem}")]
    Class {
        /// The class as it was asked for.
        class: String,
        /// Why it cannot be explained.
        problem: String,
    },
    /// A picture that cannot be read or is not acceptable.
    #[error("image {name}: {problem}")]
    Image {
        /// The file, or what else names the picture.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A grid of patches that cannot be used.
    #[error("grid: {0}")]
    Grid(String),
    /// An option whose value makes no sense.
    #[error("{option}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// A setting of a method whose value makes no sense.
    #[error("setting `{key}` of {method}: {problem}")]
    Setting {
        /// The method.
        method: &'static str,
        /// The setting's key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// More memory needed than is free or allowed.
    #[error("memory: {what} needs {} MiB, but only {} MiB are available", mib(*.need), .have >> 20)]
    Memory {
        /// What asked for it.
        what: String,
        /// Bytes needed.
        need: u64,
        /// Bytes free or allowed.
        have: u64,
    },
    /// A device that cannot be used or has failed.
    #[error("device {device}: {problem}")]
    Device {
        /// The device, as it was asked for.
        device: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A network whose values left the range of finite numbers.
    #[error("non-finite values first appear at node `{node}` of the network")]
    NonFinite {
        /// The first node with an infinite or undefined output.
        node: String,
    },
    /// A file operation that failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// How the tensors of a file differ from what a network needs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Keys that the network needs and the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that the network has no use for.
    pub unexpected: Vec<String>,
    /// `(key, expected shape, found shape)`.
    pub shapes: Vec<(String, String, String)>,
}

impl Misfit {
    /// True when the file fits.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty()
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let list = |f: &mut fmt::Formatter<'_>, title: &str, items: Vec<String>| -> fmt::Result {
            if items.is_empty() {
                return Ok(());
            }
            write!(f, "\n  {} {title}: {}", items.len(), items[..items.len().min(SHOWN)].join(", "))?;
            if items.len() > SHOWN {
                write!(f, ", …")?;
            }
            Ok(())
        };
        list(f, "missing", self.missing.clone())?;
        list(f, "unexpected", self.unexpected.clone())?;
        let shapes =
            self.shapes.iter().map(|(key, want, found)| format!("{key} (expected {want}, found {found})")).collect();
        list(f, "mis-shaped", shapes)
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl Error {
    /// The group and details of this error.
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    /// A weights file that cannot be used.
    pub(crate) fn weights(path: &Path, problem: impl Into<String>) -> Self {
        ErrorKind::Weights { path: path.into(), problem: problem.into() }.into()
    }

    /// An image that cannot be used.
    pub(crate) fn image(name: impl Into<String>, problem: impl Into<String>) -> Self {
        ErrorKind::Image { name: name.into(), problem: problem.into() }.into()
    }

    /// A failed file operation.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        ErrorKind::Io { path: path.into(), source }.into()
    }

    /// A name outside a list of known ones.
    pub(crate) fn unknown<S: Into<String>>(
        what: &'static str,
        name: impl Into<String>,
        known: impl IntoIterator<Item = S>,
    ) -> Self {
        ErrorKind::UnknownName { what, name: name.into(), known: known.into_iter().map(Into::into).collect() }.into()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(kind))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)
    }
}
