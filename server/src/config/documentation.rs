//! The file of defaults and docs/configuration.md, both made from the table of settings.

use std::fmt::Write;

use super::{settings::SECTIONS, table::Setting};

/// The commented file of defaults, as `config defaults` prints it. A test keeps it equal to [`default_file`].
pub const DEFAULT_FILE: &str = include_str!("../../config.default.toml");

/// The file of defaults, from the table: every setting commented out, so that a copy does not pin what a later version may improve.
pub fn default_file() -> String {
    let mut file = String::from(
        "# Every setting of bananas-broker with its default. Remove the # before a setting to change it.\n\
         # Durations: 250ms, 30s, 5m, 1h30m. Sizes: 64KiB, 4MiB or a number of bytes.\n\
         # Each can also be given as an environment variable (BANANAS_SECTION_KEY) or a flag (--set section.key=value); flags win over the\n\
         # environment, the environment over this file. `bananas-broker config show` prints what is in force and where it came from.\n",
    );
    for section in SECTIONS {
        let _ = writeln!(file);
        for line in section.doc {
            let _ = writeln!(file, "# {}", line.trim());
        }
        let _ = writeln!(file, "[{}]", section.name);
        for setting in section.settings {
            let _ = writeln!(file);
            for line in setting.doc {
                let _ = writeln!(file, "# {}", line.trim());
            }
            let _ = writeln!(file, "# {}", constraint(setting));
            let _ = writeln!(file, "#{} = {}", setting.name, toml_literal(setting));
        }
    }
    file
}

fn constraint(setting: &Setting) -> String {
    let mut names = vec![setting.variable()];
    names.extend(setting.aliases.iter().map(ToString::to_string));
    names.extend(setting.port_alias.map(|name| format!("{name} (the port alone)")));
    let secret = if setting.secret {
        format!("; or {}_FILE", names.join("_FILE, "))
    } else {
        String::new()
    };
    let range = setting
        .bounds
        .map(|(least, most)| format!(" {least} to {most}."))
        .unwrap_or_default();
    let kind = if setting.bounds.is_some() {
        String::new()
    } else {
        format!(" Write {}.", setting.kind)
    };
    format!("({}{secret}){range}{kind}", names.join(", "))
}

fn toml_literal(setting: &Setting) -> String {
    if setting.bare {
        setting.default.into()
    } else {
        format!("{:?}", setting.default)
    }
}

/// docs/configuration.md.
pub fn page() -> String {
    let mut page = String::from(
        "# Configuration of the broker\n\n\
         Made from `server/src/config/settings.rs`; do not edit.\n\n\
         A value comes from the strongest source that has it: a flag (`--set section.key=value`, and the short flags of `serve --help`), an environment\n\
         variable, the file (`--config`, `BANANAS_CONFIG`, or `/etc/bananas/broker.toml` if it exists), the default. A key that does not exist, a value that\n\
         cannot be read or is out of bounds, and settings that contradict each other are refused at start, all of them in one message.\n\n\
         | to | run |\n|---|---|\n\
         | see what is in force and where each value came from (secrets are redacted) | `bananas-broker config show` (`-o json`) |\n\
         | check a file before a restart | `bananas-broker config check --config FILE` |\n\
         | get a commented file of all defaults | `bananas-broker config defaults` |\n\
         | have a running broker read its sources again | `kill -HUP` its process (`systemctl reload`): `log.level` takes effect at once, other settings at the next start, and the log names both |\n\n\
         Durations are written `250ms`, `30s`, `5m`, `1h30m`; sizes `64KiB`, `4MiB` or as a number of bytes. `0` switches off what says so.\n\
         A secret can also come from a file: `redis.password_file = \"/run/secrets/redis\"`, or the variable's name with `_FILE`.\n\
         An environment variable that is empty counts as not set.\n",
    );
    for section in SECTIONS {
        let _ = write!(page, "\n## {}\n\n", section.name);
        for line in section.doc {
            let _ = writeln!(page, "{}", line.trim());
        }
        let _ = write!(
            page,
            "\n| setting | default | bounds | environment | meaning |\n|---|---|---|---|---|\n"
        );
        for setting in section.settings {
            let default = if setting.default.is_empty() {
                "none".into()
            } else {
                format!("`{}`", setting.default)
            };
            let bounds = setting
                .bounds
                .map(|(least, most)| format!("{least} to {most}"))
                .unwrap_or_default();
            let mut names = vec![format!("`{}`", setting.variable())];
            names.extend(setting.aliases.iter().map(|name| format!("`{name}`")));
            names.extend(setting.port_alias.map(|name| format!("`{name}` (the port alone)")));
            let _ = writeln!(
                page,
                "| `{}` | {default} | {bounds} | {} | {} |",
                setting.key(),
                names.join(", "),
                setting.help()
            );
        }
    }
    page.push_str(NOT_HERE);
    page
}

const NOT_HERE: &str = "
## Variables that are read elsewhere, or not at all

| variable | read by |
|---|---|
| `WORKER_MODE`, `WORKER_CONCURRENCY`, `WORKER_PRIORITIES`, `WORKER_ROUTING_KEYS`, `WORKER_JOB_TYPES` | the worker library and `bananas worker` |
| `BANANAS_BROKER` | clients: the address of the broker |
| `SCHEDULER_INTERVAL`, `ENABLE_SCHEDULER` | nobody: every broker moves due jobs itself, to the millisecond; there is no scheduler to run or to switch off |
| `API_CORS_ORIGINS` | nobody: no port of the broker answers browsers |
| `LOG_OUTPUT=elasticsearch` | refused: write JSON to a file and let Filebeat or Vector ship it |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_in_the_tree_are_the_ones_made_from_the_table() {
        crate::documents::compare_or_write("server/config.default.toml", &default_file());
        crate::documents::compare_or_write("docs/configuration.md", &page());
    }
}
