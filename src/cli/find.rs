//! From what the user names to what is meant: the weights file, classes.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use sha2::{Digest, Sha256};
use ucag::Network;

/// The weights file: as asked for, or the bundled one where it is found.
pub fn weights(asked: Option<&Path>) -> Result<PathBuf> {
    const BUNDLED: &str = "weights/vgg16-everyday.safetensors";
    let variable = std::env::var_os("UCAG_WEIGHTS").filter(|value| !value.is_empty());
    if let Some(path) = asked.map(PathBuf::from).or_else(|| variable.map(PathBuf::from)) {
        return Ok(path);
    }
    // Beside the program, or above it where it lies in `bin` or in Cargo's `target/release`.
    let program = std::env::current_exe().unwrap_or_default();
    let folders = program.ancestors().skip(1).take(3).chain([Path::new(env!("CARGO_MANIFEST_DIR"))]);
    folders.map(|folder| folder.join(BUNDLED)).find(|path| path.is_file()).ok_or_else(|| {
        anyhow!("no weights: {BUNDLED} is not beside the program; give --weights FILE or set UCAG_WEIGHTS")
    })
}

/// The classes that numbers or names stand for, each once.
pub fn classes(network: &Network, names: &[String]) -> Result<Vec<usize>> {
    let mut found = vec![];
    for name in names {
        let class = class(network, name)?;
        if !found.contains(&class) {
            found.push(class);
        }
    }
    Ok(found)
}

/// A class by number, by its whole name, or by a part of it that no other name has.
fn class(network: &Network, name: &str) -> Result<usize> {
    let count = network.graph.classes();
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
        let index = name.parse().ok().filter(|index| *index < count);
        return index.ok_or_else(|| anyhow!("class `{name}`: expected 0 to {}, or a name", count - 1));
    }
    if network.labels.is_empty() {
        bail!("class `{name}`: the classes of this network have no names; give a number, or names by --labels");
    }
    let wanted = name.to_lowercase();
    let matching = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..count).filter(|i| test(&network.label(*i).to_lowercase())).collect()
    };
    let whole = matching(&|label| label == wanted);
    let candidates = if whole.is_empty() { matching(&|label| label.contains(&wanted)) } else { whole };
    let list = |classes: &mut dyn Iterator<Item = usize>| -> String {
        classes.take(5).map(|i| format!("{} ({i})", network.label(i))).collect::<Vec<_>>().join(", ")
    };
    match candidates.as_slice() {
        [class] => Ok(*class),
        [] => bail!("class `{name}`: no such name among {count}, such as {}", list(&mut (0..count))),
        many => bail!("class `{name}`: {} names match, such as {}", many.len(), list(&mut many.iter().copied())),
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn file_sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
