//! Options and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ucag::{Device, Fit, Mode, Precision};

const EXAMPLES: &str = "\
Examples:
  ucag-fast explain cat.jpg
      cat.overlay.png and cat.json: why the most probable class is what it is
  ucag-fast explain cat.jpg --class tabby --class 'golden retriever' --emit panel
      two classes, each with photo, plain map and UCAG map side by side
  ucag-fast explain photos/ --out maps --json > maps.jsonl
      all images of a folder, one JSON object a photo on standard output
  curl -s https://example.org/cat.jpg | ucag-fast explain - --method lrp-epsilon-plus
      a photo from standard input
  ucag-fast explain cat.jpg --method grad-cam,layer-cam,lrp-epsilon-plus --emit panel
      several methods in one picture: plain maps above, UCAG maps below
  ucag-fast inspect model.safetensors
      what network a file holds

Exit code: 0, or 1 when no map says anything, or 2 when a photo or an option failed.";

/// Explains what an image classifier sees: Grad-CAM and LRP, sharpened by UCAG
#[derive(Parser)]
#[command(name = "ucag-fast", version, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Explain photos
    Explain(Box<Explain>),
    /// List the known networks, or the layers of one
    Models {
        /// A network whose layers are listed
        name: Option<String>,
    },
    /// List the explanation methods and what can be set about them
    Methods {
        /// A method; all unless given
        name: Option<String>,
    },
    /// List what can be computed on, and why a GPU is not used
    Devices,
    /// Measure the time from a frame in memory to its map, stage by stage, beside what the machine allows at best
    Bench(Box<Bench>),
    /// Say what a safetensors file is, and what would be loaded or does not fit
    Inspect {
        /// The file
        file: PathBuf,
        /// Hold it against this network instead of the one it looks like
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
    },
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// Photos, folders of photos, or `-` for standard input (PNG, JPEG, WebP, BMP, TIFF, PNM, GIF)
    #[arg(value_name = "PHOTO", required_unless_present = "list")]
    pub photos: Vec<PathBuf>,
    /// A file that names a photo a line, and after a tab or blank the class to explain, if any
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,

    #[command(flatten)]
    pub engine: Engine,

    /// Class to explain, by number or name; may be repeated [default: the most probable]
    #[arg(long, value_name = "INDEX|NAME", help_heading = "Explanation", conflicts_with = "top")]
    pub class: Vec<String>,
    /// Explain the K most probable classes
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Explanation")]
    pub top: usize,

    /// Report what relevance and gradients lose on the way from the logit to the whole photo's map, node by node
    #[arg(long, help_heading = "Output")]
    pub check: bool,
    /// Files to write
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "KIND,...",
        default_value = "overlay,json",
        help_heading = "Output"
    )]
    pub emit: Vec<Kind>,
    /// Folder for them; made if missing
    #[arg(long, value_name = "DIR", default_value = ".", help_heading = "Output")]
    pub out: PathBuf,
    /// Print one JSON object a photo, and nothing else
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Print no warnings and no report, nothing but errors (and --json's lines)
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

#[derive(Args)]
pub struct Bench {
    /// A photo [default: a picture of 224×224 pixels that is made on the spot]
    pub photo: Option<PathBuf>,

    #[command(flatten)]
    pub engine: Engine,

    /// Frames that are timed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub frames: u32,
    /// Frames before them that are not, the first one aside
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warmup: u32,
    /// Lay the map over the frame too
    #[arg(long)]
    pub overlay: bool,
    /// Time each layer by itself too
    #[arg(long)]
    pub layers: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Network, explanation and machine.
#[derive(Args)]
pub struct Engine {
    /// Safetensors file [default: $UCAG_WEIGHTS, or the bundled vgg16-everyday.safetensors]
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub weights: Option<PathBuf>,
    /// Network, where it is not to be recognised from the file; see `ucag-fast models`
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub model: Option<String>,
    /// Names of the classes, one a line
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub labels: Option<PathBuf>,

    /// Methods, which share the forward pass; see `ucag-fast methods`
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        default_value = "grad-cam",
        help_heading = "Explanation"
    )]
    pub method: Vec<String>,
    /// Set something about the methods that know the key, or by METHOD.KEY about one; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, help_heading = "Explanation")]
    pub set: Vec<(String, String)>,
    /// Layer that methods read which read one [default: the method's own for the network]
    #[arg(long, value_name = "NAME", help_heading = "Explanation")]
    pub layer: Option<String>,
    /// The methods alone, without UCAG
    #[arg(long, help_heading = "Explanation")]
    pub plain: bool,
    /// Reading of UCAG: the paper's text, or its authors' published code
    #[arg(long, value_enum, default_value = "paper", help_heading = "UCAG")]
    pub mode: ModeName,
    /// Patches along each axis
    #[arg(long, value_name = "N", default_value_t = 6, help_heading = "UCAG")]
    pub grid: usize,
    /// Side of a patch as a part of the image's [default: 0.555, release 124/224]
    #[arg(long, value_name = "R", help_heading = "UCAG", allow_negative_numbers = true)]
    pub rho: Option<f64>,
    /// Factor that patches are scaled up by
    #[arg(long, value_name = "A", default_value_t = 2.6, help_heading = "UCAG", allow_negative_numbers = true)]
    pub alpha: f64,
    /// Nudge sizes and factor so that patches have most in common, which saves work on pictures that are not square
    #[arg(long, conflicts_with = "mode", help_heading = "UCAG")]
    pub grid_align: bool,
    /// How a photo becomes the image that is explained
    #[arg(long, value_enum, default_value = "fit", help_heading = "UCAG")]
    pub resize: FitName,
    /// Side of that image in pixels [default: the network's, 224]
    #[arg(long, value_name = "N", help_heading = "UCAG")]
    pub size: Option<usize>,

    /// Where to compute: auto, cpu, cuda or cuda:N; `ucag-fast devices` lists what there is
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    pub device: Device,
    /// Bits in which activations are stored [default: f32 on the CPU, f16 on GPUs]
    #[arg(long, value_enum, value_name = "BITS", help_heading = "Machine")]
    pub precision: Option<PrecisionName>,
    /// Patches computed together; changes no map [default: what suits the device]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub batch: Option<usize>,
    /// Compute every sum of every patch: none by Winograd's algorithm, none for several patches at once, no gradient in
    /// closed form; slower, with the same maps but for rounding
    #[arg(long, help_heading = "Machine")]
    pub no_shortcuts: bool,
    /// Threads [default: one for each core that the process may use]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,
    /// Most working memory beyond the weights, such as 512M or 2G [default: a quarter of the machine's, on GPUs what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Machine")]
    pub memory: Option<u64>,
}

/// `--mode`
#[derive(Clone, Copy, ValueEnum)]
pub enum ModeName {
    Paper,
    Release,
}

/// `--resize`
#[derive(Clone, Copy, ValueEnum)]
pub enum FitName {
    /// Shorter side to the size
    Fit,
    /// Both sides to the size
    Squash,
    /// Shorter side to 256/224 of the size, then the centre
    Crop,
    /// As it is
    None,
}

/// `--precision`
#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionName {
    F32,
    F16,
}

/// `--emit`
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The map over the photo
    Overlay,
    /// Photo, plain maps and UCAG maps side by side, all methods of a class in one picture
    Panel,
    /// The map alone
    Heat,
    /// The raw map, float32, for NumPy
    Npy,
    /// The map as 16-bit grey PNG
    Png16,
    /// All numbers
    Json,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Paper => Self::Paper,
            ModeName::Release => Self::Release,
        }
    }
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::F16 => Self::F16,
        }
    }
}

impl From<FitName> for Fit {
    fn from(name: FitName) -> Self {
        match name {
            FitName::Fit => Self::Fit,
            FitName::Squash => Self::Squash,
            FitName::Crop => Self::Crop,
            FitName::None => Self::None,
        }
    }
}

impl Kind {
    /// What a file of this kind is called after its stem.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Overlay => "overlay.png",
            Self::Panel => "panel.png",
            Self::Heat => "heat.png",
            Self::Npy => "npy",
            Self::Png16 => "png16.png",
            Self::Json => "json",
        }
    }
}

/// A value's name on the command line.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
}

/// A key and its value.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("expected KEY=VALUE, found `{text}`"))?;
    Ok((key.trim().into(), value.trim().into()))
}

/// Bytes, with an optional K, M, G or T for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as 512M or 2G, found `{text}`");
    let bare = text.trim_end_matches(['b', 'B']).trim_end_matches('i');
    let digits = bare.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']);
    let power = match bare[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(expected()),
    };
    let number: u64 = digits.trim().parse().map_err(|_| expected())?;
    number.checked_mul(1 << (10 * power)).ok_or_else(expected)
}
