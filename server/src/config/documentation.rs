//! Renders the file of defaults and docs/configuration.md from the table of settings.

use std::fmt::Write;

use super::{settings::SECTIONS, table::Setting};

/// The commented file of defaults that `config defaults` prints. A test keeps it equal to [`default_file`].
pub const DEFAULT_FILE: &str = include_str!("../../config.default.toml");

/// Renders the file of defaults. Every setting is commented out, so that a copy does not pin defaults that a later
/// version changes.
pub fn default_file() -> String {
    let mut file = String::from(
        "# Every setting of bananas-broker with its default. Remove the # before a setting to change it.\n\
         # Durations: 250ms, 30s, 5m, 1h30m. Sizes: 64KiB, 4MiB or a number of bytes.\n\
         # Each setting can also be an environment variable (BANANAS_SECTION_KEY) or a flag\n\
         # (--set section.key=value).\n\
         # Flags override the environment, the environment overrides this file.\n\
         # `bananas-broker config show` prints each value in force and its source.\n",
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
    names.extend(setting.port_alias.map(|name| format!("{name} (the port only)")));
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
         Rendered from `server/src/config/settings.rs`; do not edit.\n\n\
         The first source that sets a value wins: a flag (`--set section.key=value`, or a flag of `serve --help`), an\n\
         environment variable, the file (`--config`, `BANANAS_CONFIG`, or `/etc/bananas/broker.toml` if it exists),\n\
         the default. Unknown keys, values that are invalid or out of bounds, and settings that contradict each other\n\
         are refused at start, all of them in one message.\n\n\
         | to | run |\n|---|---|\n\
         | see each value in force and its source (secrets are redacted) | `bananas-broker config show` (`-o json`) |\n\
         | check a file before a restart | `bananas-broker config check --config FILE` |\n\
         | get a commented file of all defaults | `bananas-broker config defaults` |\n\
         | make a running broker read its sources again | `kill -HUP` its process (`systemctl reload`): \
         `log.level` takes effect at once, other settings at the next start; the log lists both |\n\n\
         Durations are written `250ms`, `30s`, `5m`, `1h30m`; sizes `64KiB`, `4MiB` or a number of bytes.\n\
         Where a setting says so, `0` turns it off. A secret can also come from a file:\n\
         `redis.password_file = \"/run/secrets/redis\"`, or the name of its variable with `_FILE`.\n\
         An empty environment variable counts as not set.\n",
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
            names.extend(setting.port_alias.map(|name| format!("`{name}` (the port only)")));
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
## Variables that other programs read, or none

| variable | read by |
|---|---|
| `WORKER_MODE`, `WORKER_CONCURRENCY`, `WORKER_PRIORITIES`, `WORKER_ROUTING_KEYS`, `WORKER_JOB_TYPES` \
| the worker library and `bananas worker` |
| `BANANAS_BROKER` | clients: the address of the broker |
| `SCHEDULER_INTERVAL`, `ENABLE_SCHEDULER` \
| none: every broker promotes due jobs, to the millisecond; there is no separate scheduler |
| `API_CORS_ORIGINS` | none: no port of the broker serves browsers |
| `LOG_OUTPUT=elasticsearch` | refused: write JSON to a file and let Filebeat or Vector ship it |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rendered_pages_are_up_to_date() {
        crate::documents::compare_or_write("server/config.default.toml", &default_file());
        crate::documents::compare_or_write("docs/configuration.md", &page());
    }
}
