//! `explain`: photos in, maps out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};
use ucag::io::{self, Photo};
use ucag::render::{self, Tile};
use ucag::{ClassExplanation, ErrorKind, Explainer, Explanation, Map, Status, Target};

use super::args::{self, Explain, Kind};
use super::find;
use super::inputs::{self, Input};
use super::output::{self, Folder, Printer};
use super::progress::Progress;
use super::report::{self, Report, Timings};
use super::setup;
use super::{FAILED, FINE, NOTHING};

/// A class less probable than this is hardly what the photo shows.
const DOUBTFUL: f32 = 0.01;

/// Explains all photos; a photo that fails does not keep the others from being explained.
pub fn run(args: &Explain, printer: &mut Printer) -> Result<u8> {
    output::exit_cleanly_on_signals()?;
    let (inputs, failures) = inputs::gather(&args.photos, args.list.as_deref())?;
    let mut job = Job::new(args)?;
    failures.iter().for_each(output::error);
    let mut failed = !failures.is_empty();
    let mut useful = false;
    for input in &inputs {
        match job.explain(input) {
            Ok((report, fine)) => {
                useful |= fine;
                if args.json {
                    printer.line(&serde_json::to_string(&report)?)?;
                } else if !args.quiet {
                    printer.line(&report.text())?;
                }
            }
            Err(error) => {
                failed = true;
                output::error(&error);
            }
        }
    }
    Ok(match (failed, useful) {
        (true, _) => FAILED,
        (false, true) => FINE,
        (false, false) => NOTHING,
    })
}

struct Job<'a> {
    args: &'a Explain,
    kinds: Vec<Kind>,
    explainer: Explainer,
    target: Target,
    folder: Folder,
    weights: PathBuf,
    /// Runs while the first photo is explained.
    hashing: Option<JoinHandle<std::io::Result<String>>>,
    network: Option<report::Network>,
}

impl<'a> Job<'a> {
    fn new(args: &'a Explain) -> Result<Self> {
        let mut kinds = vec![];
        args.emit.iter().for_each(|kind| {
            if !kinds.contains(kind) {
                kinds.push(*kind)
            }
        });
        let panel = kinds.contains(&Kind::Panel);
        if args.engine.plain && panel {
            bail!("--emit panel shows the plain map beside UCAG's, so it does not go with --plain");
        }
        let (builder, weights) = setup::builder(&args.engine, panel)?;
        let explainer = builder.overlay(kinds.contains(&Kind::Overlay)).check(args.check).build()?;
        let classes = explainer.network().graph.classes();
        if args.top == 0 || args.top > classes {
            bail!("--top: expected 1 to {classes}, the number of classes, found {}", args.top);
        }
        let target = match args.class.as_slice() {
            [] => Target::Top(args.top),
            names => Target::Classes(find::classes(explainer.network(), names)?),
        };
        let folder = Folder::open(&args.out)?;
        let hashing = (args.json || kinds.contains(&Kind::Json)).then(|| {
            let path = weights.clone();
            std::thread::spawn(move || find::file_sha256(&path))
        });
        Ok(Self { args, kinds, explainer, target, folder, weights, hashing, network: None })
    }

    /// Explains a photo and writes its files; tells whether a map says anything.
    fn explain(&mut self, input: &Input) -> Result<(Report, bool)> {
        let name = input.name();
        let start = Instant::now();
        let bytes = match &input.path {
            Some(path) => io::read(path)?,
            None => io::read_from(&name, std::io::stdin().lock())?,
        };
        let photo = Photo::from_bytes(&name, &bytes)?;
        let decode = start.elapsed();
        let target = match &input.class {
            Some(class) => Target::Classes(
                find::classes(self.explainer.network(), std::slice::from_ref(class)).with_context(|| name.clone())?,
            ),
            None => self.target.clone(),
        };
        let mut progress = Progress::new(&name, self.args.quiet);
        let explained =
            self.explainer.explain_with(&photo.frame(), &target, &mut |done, all| progress.update(done, all));
        let explanation = explained.map_err(|error| named(&error, &name))?;
        drop(progress);

        let rendering = Instant::now();
        let mut files = vec![];
        let methods = self.explainer.methods().len();
        for maps in explanation.classes.chunks(methods) {
            let class = (explanation.classes.len() > methods).then_some(maps[0].class);
            for kind in self.kinds.iter().filter(|kind| **kind != Kind::Json) {
                if *kind == Kind::Panel {
                    files.push((self.file(input, class, None, *kind), panel(&photo, &explanation, maps)?));
                    continue;
                }
                for entry in maps {
                    let method = (methods > 1).then_some(entry.method.name);
                    files.push((self.file(input, class, method, *kind), render(*kind, &photo, &explanation, entry)?));
                }
            }
        }
        let render = report::ms(rendering.elapsed());
        let json = self.kinds.contains(&Kind::Json).then(|| self.file(input, None, None, Kind::Json));
        let (decode, total) = (report::ms(decode), report::ms(start.elapsed()));
        let timings_ms = Timings { decode, render, total, ..Timings::of(&explanation) };
        let (height, width) = photo.size();
        let report = Report {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            input: report::Input { path: name, sha256: find::hex(&Sha256::digest(&bytes)), width, height },
            network: self.network()?,
            check: self.args.check,
            methods: self.explainer.methods().iter().map(|c| report::Method::of(&self.explainer, c)).collect(),
            mode: args::name(self.args.engine.mode),
            classes: explanation.classes.iter().map(Into::into).collect(),
            top5: explanation.top.iter().map(|(class, probability)| self.probability(*class, *probability)).collect(),
            grid: explanation.grid.as_ref().map(Into::into),
            working: (&explanation.working).into(),
            resize: args::name(self.args.engine.resize),
            timings_ms,
            files: files.iter().map(|(path, _)| path).chain(&json).map(|path| path.display().to_string()).collect(),
            threads: self.explainer.threads(),
            device: self.explainer.device().to_string(),
        };
        if let Some(path) = json {
            files.push((path, (serde_json::to_string_pretty(&report)? + "\n").into_bytes()));
        }
        self.folder.write(&files)?;
        if let Some(note) = self.explainer.note().filter(|_| !self.args.quiet) {
            output::warning(note);
        }
        self.warn(&report);
        Ok((report, explanation.classes.iter().any(|c| c.status == Status::Fine)))
    }

    /// `STEM[.CLASS][.METHOD].KIND` in the output folder.
    fn file(&self, input: &Input, class: Option<usize>, method: Option<&str>, kind: Kind) -> PathBuf {
        let mut name = OsString::from(&input.stem);
        class.iter().for_each(|class| name.push(format!(".{class}")));
        method.iter().for_each(|method| name.push(format!(".{method}")));
        name.push(format!(".{}", kind.suffix()));
        self.folder.file(name)
    }

    fn probability(&self, class: usize, probability: f32) -> report::Probability {
        report::Probability { class, label: self.explainer.network().label(class), probability }
    }

    /// The network's part of a report; waits for the file's checksum once.
    fn network(&mut self) -> Result<report::Network> {
        if let Some(network) = &self.network {
            return Ok(network.clone());
        }
        let sha256 = match self.hashing.take().map(JoinHandle::join) {
            Some(Ok(hash)) => hash.with_context(|| self.weights.display().to_string())?,
            Some(Err(_)) => bail!("{}: its checksum could not be computed", self.weights.display()),
            None => String::new(),
        };
        let network = self.explainer.network();
        let (model, classes) = (network.model.name, network.graph.classes());
        let network = report::Network { model, weights: self.weights.display().to_string(), sha256, classes };
        Ok(self.network.insert(network).clone())
    }

    fn warn(&self, report: &Report) {
        let classes = report.classes.iter().step_by(report.methods.len());
        for class in classes.filter(|c| c.probability < DOUBTFUL && !self.args.quiet) {
            output::warning(&format!(
                "{}: `{}` (class {}) has a probability of only {:.1e}; its map says little",
                report.input.path, class.label, class.class, class.probability
            ));
        }
    }
}

/// A library error with the photo's name.
fn named(error: &ucag::Error, name: &str) -> anyhow::Error {
    match error.kind() {
        ErrorKind::Image { problem, .. } => anyhow!("image {name}: {problem}"),
        _ => anyhow!("image {name}: {error}"),
    }
}

/// A file that shows one map.
fn render(kind: Kind, photo: &Photo, explanation: &Explanation, entry: &ClassExplanation) -> Result<Vec<u8>> {
    let (frame, map, source) = (photo.frame(), entry.map(), explanation.working.source);
    let level = entry.method.drawn_as();
    Ok(match kind {
        Kind::Overlay => match &entry.overlay {
            Some(picture) => io::png(picture)?,
            None => io::png(&render::overlay(&frame, source, map, level))?,
        },
        Kind::Heat => io::png(&render::heat(&frame, source, map, level))?,
        Kind::Npy => io::npy(map),
        Kind::Png16 => io::png16(map, level)?,
        Kind::Panel | Kind::Json => unreachable!("these show all maps"),
    })
}

/// All maps of one class. One method: plain and UCAG in a row. Several: plain maps above, UCAG maps below.
fn panel(photo: &Photo, explanation: &Explanation, maps: &[ClassExplanation]) -> Result<Vec<u8>> {
    let class = &maps[0];
    let caption = format!("{} {:.1} %", class.label, 100.0 * class.probability);
    let tiles = |with: &str, map: fn(&ClassExplanation) -> Option<&Map>| -> Vec<Tile<'_>> {
        let made = maps.iter().filter_map(|entry| Some((entry.method, map(entry)?)));
        made.map(|(m, map)| Tile { caption: format!("{}{with}", m.name), map, level: m.drawn_as() }).collect()
    };
    let (plain, ucag) = (tiles("", |entry| entry.plain.as_ref()), tiles(" + UCAG", |entry| entry.ucag.as_ref()));
    let rows = if maps.len() == 1 { vec![[plain, ucag].concat()] } else { vec![plain, ucag] };
    Ok(io::png(&render::panel(&photo.frame(), &explanation.working, &caption, &rows))?)
}
