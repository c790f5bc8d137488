//! `bananas completions` and `bananas man`: generated from the definition of the arguments.

use std::{fmt::Write as _, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use crate::{exit::Result, output};

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write bananas.1 and a page for each subcommand into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub out: Option<PathBuf>,
    /// Print docs/cli.md instead
    #[arg(long, hide = true)]
    markdown: bool,
}

pub(crate) fn completions(args: &CompletionsArgs, mut command: Command) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "bananas", &mut script);
    Ok(output::print_bytes(&script)?)
}

pub(crate) fn man(args: &ManArgs, command: Command) -> Result {
    if args.markdown {
        return Ok(output::print_bytes(markdown(command).as_bytes())?);
    }
    if let Some(directory) = &args.out {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command, directory)?;
        return Ok(());
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(output::print_bytes(&page)?)
}

/// The page docs/cli.md: the help of each command.
pub(crate) fn markdown(command: Command) -> String {
    let mut text = String::from(
        "# The command line\n\n\
         `bananas` talks gRPC to a broker and nothing else. This page is its help, \
         rendered by `bananas man --markdown`.\n",
    );
    let mut command = command.term_width(100);
    command.build();
    section(&mut text, &mut command, "bananas");
    text
}

fn section(text: &mut String, command: &mut Command, name: &str) {
    let help = command.render_long_help().to_string();
    let mut help: Vec<&str> = help.lines().map(str::trim_end).collect();
    // The global options are only shown with the first command.
    if name.contains(' ')
        && let Some(start) = help.iter().position(|line| *line == "Global options:")
    {
        let is_next = |line: &&str| !line.is_empty() && !line.starts_with(' ');
        let end = help[start + 1..]
            .iter()
            .position(is_next)
            .map_or(help.len(), |length| start + 1 + length);
        help.drain(start..end);
    }
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for inner in command
        .get_subcommands_mut()
        .filter(|inner| inner.get_name() != "help" && !inner.is_hide_set())
    {
        let name = format!("{name} {}", inner.get_name());
        section(text, inner, &name);
    }
}
