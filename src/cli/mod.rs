//! The command line program.

mod args;
mod bench;
mod explain;
mod find;
mod inputs;
mod output;
mod progress;
mod report;
mod setup;
mod show;

use clap::Parser;

use output::Printer;

/// Everything went well.
const FINE: u8 = 0;
/// No explained map says anything.
const NOTHING: u8 = 1;
/// A photo or an option failed.
const FAILED: u8 = 2;

/// Runs the program with the process's arguments; gives the exit code.
pub fn run() -> u8 {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(text) if text.use_stderr() => {
            eprint!("{}: {}", output::PROGRAM, text.render());
            return FAILED;
        }
        Err(text) => {
            // Help and version; that nobody reads them is no failure.
            let _ = text.print();
            return FINE;
        }
    };
    let mut printer = Printer::default();
    let result = match &arguments.command {
        args::Command::Explain(arguments) => explain::run(arguments, &mut printer),
        args::Command::Models { name } => show::models(name.as_deref(), &mut printer),
        args::Command::Methods { name } => show::methods(name.as_deref(), &mut printer),
        args::Command::Devices => show::devices(&mut printer),
        args::Command::Bench(arguments) => bench::run(arguments, &mut printer),
        args::Command::Inspect { file, model } => show::inspect(file, model.as_deref(), &mut printer),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        FAILED
    })
}
