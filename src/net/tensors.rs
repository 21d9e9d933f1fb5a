//! A safetensors file, memory-mapped: the list of its tensors and their values as `f32`.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::SafeTensors;

use super::params::Values;
use crate::error::{Error, Result};

/// Text entries of the file's header.
pub type Metadata = BTreeMap<String, String>;

/// Storage type of a tensor that `ucag` can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// 16-bit IEEE floating point.
    F16,
    /// 16-bit brain floating point.
    Bf16,
}

/// Name, type and place of one tensor.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// `None` for a type that holds no network weights (integers, say).
    pub dtype: Option<Dtype>,
    /// The type's name as the file gives it.
    pub dtype_name: String,
    /// Extent of every axis.
    pub shape: Vec<usize>,
    range: Range<usize>,
}

/// The bytes of a safetensors file with its header read and checked.
///
/// A file is mapped, not read: it must not be truncated or rewritten while it is in use. Files that may change
/// underneath, on a network share for instance, can be read into memory and given to [`Tensors::from_bytes`].
#[derive(Debug, Clone)]
pub struct Tensors {
    path: PathBuf,
    source: Source,
    file_len: usize,
    infos: BTreeMap<String, TensorInfo>,
    metadata: Metadata,
}

/// Where values come from.
#[derive(Debug, Clone)]
enum Source {
    /// A file, of which each tensor is mapped by itself: what is converted leaves no pages behind.
    File(Arc<File>),
    /// Memory.
    Memory(Arc<Bytes>),
}

/// Bytes of a file.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Tensors {
    /// Maps a safetensors file and checks its header.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a well-formed safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            return Err(Error::weights(path, "expected a safetensors file, found something that is no regular file"));
        }
        if meta.len() == 0 {
            return Err(Error::weights(path, "expected a safetensors file, found an empty file"));
        }
        let len = usize::try_from(meta.len()).map_err(|_| Error::weights(path, "the file is larger than memory"))?;
        let header = map(&file, 0, len).map_err(|e| Error::io(path, e))?;
        Self::parse(path, &header, Source::File(Arc::new(file)))
    }

    /// Takes the bytes of a safetensors file; `name` stands for the path in messages.
    ///
    /// # Errors
    /// When the bytes are not a well-formed safetensors file.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        let bytes = Arc::new(Bytes::Owned(bytes));
        Self::parse(name.as_ref(), &bytes, Source::Memory(bytes.clone()))
    }

    fn parse(path: &Path, bytes: &[u8], source: Source) -> Result<Self> {
        let (header, meta) = SafeTensors::read_metadata(bytes)
            .map_err(|e| Error::weights(path, format!("not a well-formed safetensors file ({e})")))?;
        let start = header + size_of::<u64>();
        let mut infos = BTreeMap::new();
        for (name, info) in meta.tensors() {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            if range.end > bytes.len() {
                let problem = format!(
                    "tensor `{name}` ends at byte {}, but the file has {} (is it truncated?)",
                    range.end,
                    bytes.len()
                );
                return Err(Error::weights(path, problem));
            }
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Some(Dtype::F32),
                safetensors::Dtype::F16 => Some(Dtype::F16),
                safetensors::Dtype::BF16 => Some(Dtype::Bf16),
                _ => None,
            };
            let dtype_name = format!("{:?}", info.dtype);
            infos.insert(name, TensorInfo { dtype, dtype_name, shape: info.shape.clone(), range });
        }
        if infos.is_empty() {
            return Err(Error::weights(path, "the file holds no tensors"));
        }
        let metadata = meta.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Self { path: path.into(), source, file_len: bytes.len(), infos, metadata })
    }

    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file in bytes.
    pub fn file_len(&self) -> usize {
        self.file_len
    }

    /// All tensors by name.
    pub fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.infos.get(name).map(|i| i.shape.as_slice())
    }

    /// Text entries of the header.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Values of a tensor in file order; borrowed from the file where they are `f32` and aligned there.
    ///
    /// # Errors
    /// When the tensor is of an unreadable type or holds an infinite or undefined value.
    pub(super) fn values(&self, name: &str, info: &TensorInfo) -> Result<Values> {
        let (file, range) = match &self.source {
            Source::Memory(bytes) => (bytes.clone(), info.range.clone()),
            Source::File(file) => {
                let map = map(file, info.range.start, info.range.len()).map_err(|e| Error::io(&self.path, e))?;
                (Arc::new(Bytes::Mapped(map)), 0..info.range.len())
            }
        };
        let bytes = &file[range.clone()];
        let values = match info.dtype {
            Some(Dtype::F32) => match bytemuck::try_cast_slice::<u8, f32>(bytes) {
                Ok(_) => Values::Shared { bytes: file, range },
                Err(_) => Values::Owned(convert(bytes, f32::from_le_bytes)),
            },
            Some(Dtype::F16) => Values::Owned(convert(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Some(Dtype::Bf16) => Values::Owned(convert(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            None => {
                let problem = format!("tensor `{name}`: expected F32, F16 or BF16, found {}", info.dtype_name);
                return Err(Error::weights(&self.path, problem));
            }
        };
        let finite = |chunk: &[f32]| chunk.iter().fold(true, |ok, v| ok & v.is_finite());
        if !values.par_chunks(1 << 16).all(finite) {
            let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            let problem = format!("tensor `{name}`: value {at} is {}, expected finite numbers", values[at]);
            return Err(Error::weights(&self.path, problem));
        }
        Ok(values)
    }
}

/// Maps a part of a file, read-only.
fn map(file: &File, start: usize, len: usize) -> std::io::Result<memmap2::Mmap> {
    let mut options = memmap2::MmapOptions::new();
    // SAFETY: the mapping is read-only and private to this process; that nobody truncates the file while it is mapped
    // is the documented condition of `Tensors`.
    unsafe { options.offset(start as u64).len(len).map(file) }
}

fn convert<const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let (items, _) = bytes.as_chunks::<N>();
    items.par_iter().with_min_len(1 << 14).map(|b| from(*b)).collect()
}
