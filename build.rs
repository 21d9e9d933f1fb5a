//! With the feature `cuda`, compiles every `kernels/*.cu` and lists the results in `OUT_DIR/kernels.rs`.
//!
//! A file becomes one compressed fatbin: code for sm_80 and sm_90a, and PTX of compute_80 for everything later. A file
//! whose header says `// architectures: sm_90a` becomes code for that alone. `OUT_DIR/FILE.ptx` is the plain PTX.

use std::{
    env, fs, iter,
    path::{Path, PathBuf},
    process::{Command, exit},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

/// Of the newest PTX that a driver of CUDA 13.0 takes.
const NEWEST_PTX: (u32, u32) = (9, 0);

/// What decides on the compiler and adds to its options. PATH is left out: it differs between a shell and an editor far
/// more often than the compiler does, and the compiler that was found is watched itself.
const VARIABLES: [&str; 6] =
    ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// `include_bytes!` promises no alignment, and the driver reads structures from an image.
const TABLE_HEAD: &str = "\
// The including file defines
//     struct Module { file: &'static str, image: &'static [u8], kernels: &'static [&'static str], hopper_only: bool }
const MODULES: &[Module] = {
    #[repr(align(16))]
    struct Aligned<const N: usize>([u8; N]);
    &[
";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    // Not a panic: its trace would bury the message.
    if let Err(message) = build() {
        eprintln!("{message}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed=kernels");
    VARIABLES.iter().for_each(|name| println!("cargo::rerun-if-env-changed={name}"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("run by cargo only")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("run by cargo only")?);
    let nvcc = find_nvcc(&root)?;
    println!("cargo::rerun-if-changed={}", nvcc.display());

    let mut sources = fs::read_dir(root.join("kernels"))
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .map_err(|e| format!("kernels: {e}"))?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let results = in_parallel(&sources, |source| compile(&nvcc, source, &out));

    // The same complaint, say about the compiler itself, comes from every file.
    let mut errors: Vec<_> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
    errors.dedup();
    if !errors.is_empty() {
        return Err(errors.join("\n"));
    }
    let modules: String = results.into_iter().flatten().collect();
    let table = format!("{TABLE_HEAD}{modules}    ]\n}};\n");
    fs::write(out.join("kernels.rs"), table).map_err(|e| format!("kernels.rs: {e}"))
}

/// Path without links: nvcc looks for its own parts beside the path that it was called by.
fn find_nvcc(root: &Path) -> Result<PathBuf, String> {
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(path) = env::var_os("NVCC").filter(|path| !path.is_empty()) {
        // Who names a compiler wants that one or none.
        return fs::canonicalize(&path).map_err(|e| format!("$NVCC is {}: {e}\n{}", path.display(), help()));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let pinned = fs::read_dir(root.join(".nvcc.venv/lib")).into_iter().flatten().flatten();
    homes
        .chain(env::split_paths(&path))
        .chain(pinned.map(|python| python.path().join("site-packages/nvidia/cu13/bin")))
        .map(|folder| folder.join(&name))
        .find(|path| path.is_file())
        .and_then(|path| fs::canonicalize(path).ok())
        .ok_or_else(|| format!("The feature `cuda` needs the CUDA compiler, nvcc, and there is none.\n{}", help()))
}

fn help() -> String {
    "Looked for, in this order: $NVCC (the compiler itself), $CUDA_HOME/bin, $CUDA_PATH/bin, $PATH, .nvcc.venv.\n\
     The version must be 13.0 or older, and 12.0 or newer; only the build needs it.\n\
     Without CUDA installed, `scripts/setup-nvcc.sh` puts a compiler that fits into .nvcc.venv (about 100 MB to load)."
        .to_string()
}

/// Line of the table for one file.
fn compile(nvcc: &Path, source: &Path, out: &Path) -> Result<String, String> {
    let file = source.file_name().unwrap_or_default().to_string_lossy();
    let text = fs::read_to_string(source).map_err(|e| format!("kernels/{file}: {e}"))?;
    let mut header = text.lines().take_while(|line| line.starts_with("//"));
    let hopper_only = header.any(|line| line.trim_end() == "// architectures: sm_90a");
    let hopper = "arch=compute_90a,code=sm_90a";
    let (virtual_arch, targets) = match hopper_only {
        true => ("compute_90a", vec![hopper]),
        false => ("compute_80", vec!["arch=compute_80,code=[sm_80,compute_80]", hopper]),
    };

    // PTX first: when it is too new for the assembler, the assembler's complaint would not say why.
    let ptx_path = out.join(&*file).with_extension("ptx");
    run(nvcc, source, &["-ptx", "-arch", virtual_arch], &ptx_path)?;
    let ptx = fs::read_to_string(&ptx_path).map_err(|e| format!("{}: {e}", ptx_path.display()))?;
    check_version(nvcc, &ptx)?;

    let mut kernels = kernels_of(&text);
    let mut entries: Vec<_> = ptx.lines().filter_map(|line| line.split_once(".entry ")?.1.split('(').next()).collect();
    kernels.sort_unstable();
    entries.sort_unstable();
    if kernels != entries {
        return Err(format!(
            "kernels/{file}: KERNEL(NAME, ...) names {kernels:?}, the code has {entries:?}; write every name out"
        ));
    }

    let mut arguments = vec!["-fatbin", "-Xfatbin", "-compress-all"];
    arguments.extend(targets.iter().flat_map(|target| ["-gencode", target]));
    run(nvcc, source, &arguments, &out.join(&*file).with_extension("fatbin"))?;
    let image = format!("/{}.fatbin", file.trim_end_matches(".cu"));
    let image = format!("&Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), {image:?}))).0");
    Ok(format!(
        "        Module {{ file: {file:?}, image: {image}, kernels: &{kernels:?}, hopper_only: {hopper_only} }},\n"
    ))
}

/// Runs the compiler in the folder of the source: it then names files as they lie there, in messages and in the result.
fn run(nvcc: &Path, source: &Path, arguments: &[&str], to: &Path) -> Result<(), String> {
    let file = source.file_name().unwrap_or_default();
    let mut command = Command::new(nvcc);
    command.args(arguments).args(["-O3", "-std=c++17", "-o"]).arg(to).arg(file);
    command.current_dir(source.parent().unwrap_or(source));
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if !output.status.success() {
        return Err(format!("kernels/{}: {} failed ({})\n{said}", file.display(), nvcc.display(), output.status));
    }
    said.lines().filter(|line| !line.is_empty()).for_each(|line| println!("cargo::warning={line}"));
    Ok(())
}

fn check_version(nvcc: &Path, ptx: &str) -> Result<(), String> {
    let version = ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap_or("of no version").trim();
    let number = version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if number.is_some_and(|number: (u32, u32)| number <= NEWEST_PTX) {
        return Ok(());
    }
    Err(format!(
        "{} writes PTX {version}.\n\
         Drivers of CUDA 13.0 (r580) take 9.0 at most and refuse newer PTX when it is loaded.\n\
         The version is that of cicc, a part of nvcc. Either the compiler is newer than 13.0, or it was installed as\n\
         Python packages and only nvidia-cuda-nvcc was pinned: it takes the newest nvidia-nvvm, which holds cicc.\n\
         NVCC=\"$(scripts/setup-nvcc.sh)\" in front of the command installs and takes parts that fit, all pinned.",
        nvcc.display()
    ))
}

/// Names in `KERNEL(NAME, ...)`, outside of comments.
fn kernels_of(source: &str) -> Vec<&str> {
    let code = source.lines().filter_map(|line| line.split("//").next());
    let after = code.flat_map(|line| line.split("KERNEL(").skip(1));
    after.filter_map(|rest| Some(rest.split_once(',')?.0.trim())).collect()
}

/// Results in the order of the items, however many work on them.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || Some(next.fetch_add(1, Relaxed)).filter(|&i| i < items.len());
    let mut results: Vec<_> = thread::scope(|scope| {
        let worker = || iter::from_fn(take).map(|i| (i, work(&items[i]))).collect::<Vec<_>>();
        let count = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a compile does not panic")).collect()
    });
    results.sort_by_key(|&(i, _)| i);
    results.into_iter().map(|(_, result)| result).collect()
}
