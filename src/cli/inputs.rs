//! From arguments to the photos they stand for.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};

use super::args::Kind;

/// A photo to explain.
pub struct Input {
    /// The file, `None` for standard input.
    pub path: Option<PathBuf>,
    /// What names its outputs.
    pub stem: OsString,
    /// The class that a list asks for.
    pub class: Option<String>,
}

impl Input {
    fn new(path: PathBuf, class: Option<String>) -> Self {
        if path == Path::new("-") {
            return Self { path: None, stem: "stdin".into(), class };
        }
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_os_string();
        Self { path: Some(path), stem, class }
    }

    /// The photo in words.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".into(), |path| path.display().to_string())
    }
}

/// All photos, in order; beside them the folders that gave none.
///
/// Two photos with one stem would overwrite each other's files and are an error.
pub fn gather(photos: &[PathBuf], list: Option<&Path>) -> Result<(Vec<Input>, Vec<Error>)> {
    let mut inputs = vec![];
    let mut failures = vec![];
    for path in photos {
        match path.is_dir().then(|| folder(path)) {
            None => inputs.push(Input::new(path.clone(), None)),
            Some(Ok(found)) => inputs.extend(found.into_iter().map(|path| Input::new(path, None))),
            Some(Err(error)) => failures.push(error),
        }
    }
    if let Some(path) = list {
        let text = std::fs::read_to_string(path).with_context(|| format!("list {}", path.display()))?;
        inputs.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(entry));
    }
    let mut seen = HashMap::new();
    for input in &inputs {
        if let Some(other) = seen.insert(&input.stem, input.name()) {
            let (stem, name) = (input.stem.display(), input.name());
            bail!("{other} and {name} would both write {stem}.*; explain them into different folders");
        }
    }
    Ok((inputs, failures))
}

/// The images in a folder, sorted, less hidden files and what an earlier run wrote there.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    const EXTENSIONS: &[&str] =
        &["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff", "pnm", "pbm", "pgm", "ppm", "pam", "gif"];
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.with_context(|| path.display().to_string())?;
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let written = [Kind::Overlay, Kind::Panel, Kind::Heat, Kind::Png16];
        EXTENSIONS.contains(&extension.as_str())
            && !name.starts_with('.')
            && !written.iter().any(|kind| name.ends_with(&format!(".{}", kind.suffix())))
            && path.is_file()
    };
    let mut found: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).filter(wanted).collect();
    found.sort();
    if found.is_empty() {
        bail!("{}: expected a folder with photos, found none in it ({})", path.display(), EXTENSIONS.join(", "));
    }
    Ok(found)
}

/// A line of a list. Names of photos may hold blanks where a tab sets off the class or the file exists.
fn entry(line: &str) -> Input {
    let (photo, class) = match line.split_once('\t') {
        Some((photo, class)) => (photo, class),
        None if Path::new(line).exists() => (line, ""),
        None => line.split_once(char::is_whitespace).unwrap_or((line, "")),
    };
    let class = class.trim();
    Input::new(photo.trim().into(), (!class.is_empty()).then(|| class.to_string()))
}
