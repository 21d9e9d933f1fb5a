//! `ucag-fast`: explains image classifiers from the command line.

mod cli;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(cli::run())
}
