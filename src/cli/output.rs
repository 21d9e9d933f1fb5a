//! What leaves the program: lines, errors and files.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// The program's name in messages.
pub const PROGRAM: &str = "ucag-fast";

/// Prints an error.
pub fn error(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: error: {error:#}");
}

/// Prints a warning.
pub fn warning(text: &str) {
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: warning: {text}");
}

/// Standard output. A reader who has left, `head` say, is no failure.
#[derive(Default)]
pub struct Printer {
    closed: bool,
}

impl Printer {
    /// Prints a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed = true,
            result => result.context("standard output")?,
        }
        Ok(())
    }
}

/// Held while temporary files exist, and by the signal handler when it ends the process: so it leaves none.
static WRITING: Mutex<()> = Mutex::new(());

fn writing() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process at Ctrl-C, but not between a temporary file and its final name.
pub fn exit_cleanly_on_signals() -> Result<()> {
    const INTERRUPTED: i32 = 130;
    ctrlc::set_handler(|| {
        let _held = writing();
        std::process::exit(INTERRUPTED);
    })
    .context("signal handler")
}

/// The folder that files are written to.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder if need be and sees whether it can be written to.
    pub fn open(path: &Path) -> Result<Self> {
        let expected = || format!("output folder {}", path.display());
        std::fs::create_dir_all(path).with_context(expected)?;
        let _held = writing();
        tempfile::tempfile_in(path).with_context(expected)?;
        Ok(Self { path: path.into() })
    }

    /// Where a file of this name lies.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        if self.path == Path::new(".") { name.as_ref().into() } else { self.path.join(name) }
    }

    /// Writes files, all or none: under temporary names first, then each takes its place at once.
    pub fn write(&self, files: &[(PathBuf, Vec<u8>)]) -> Result<()> {
        let _held = writing();
        if let Some((path, _)) = files.iter().find(|(path, _)| path.is_dir()) {
            bail!("{}: expected a file or nothing, found a folder", path.display());
        }
        let staged: Vec<NamedTempFile> = files
            .iter()
            .map(|(path, bytes)| self.stage(bytes).with_context(|| path.display().to_string()))
            .collect::<Result<_>>()?;
        for (file, (path, _)) in staged.into_iter().zip(files) {
            file.persist(path).map_err(|e| e.error).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn stage(&self, bytes: &[u8]) -> Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".ucag-");
        // Temporary files are private otherwise; the umask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(&self.path)?;
        file.write_all(bytes)?;
        Ok(file)
    }
}
