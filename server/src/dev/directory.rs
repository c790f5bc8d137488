//! The data directory of a dev broker: a lock for one broker at a time, and Redis's files.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};

/// Longest path of a unix socket. Linux allows 107 bytes, other platforms a few less.
const MAX_SOCKET_PATH_BYTES: usize = 100;

/// A directory that this process has locked until the value is dropped.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: PathBuf,
    _lock: Arc<File>,
}

impl Directory {
    /// Creates it if necessary and locks it. The lock ends with the process, also if that is killed.
    pub(super) fn open(root: &Path) -> anyhow::Result<Self> {
        let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(&root.join("redis")).with_context(|| format!("cannot create {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot read {}", root.display()))?;
        let path = root.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder).unwrap_or_default();
                bail!(
                    "another dev broker (process {}) uses {}; stop it, or give this one its own --data-dir and --port",
                    holder.trim(),
                    root.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self {
            root,
            _lock: Arc::new(lock),
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn redis(&self) -> PathBuf {
        self.root.join("redis")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.redis().join("redis.conf")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.redis().join("redis.pid")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.redis().join("redis.log")
    }

    /// Removes Redis's files and with them all jobs.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(self.redis())?;
        fs::DirBuilder::new().mode(0o700).create(self.redis())?;
        Ok(())
    }

    /// Writes the configuration of Redis and returns its URL: a unix socket, or a free TCP port with a password if the
    /// path is too long.
    pub(super) fn write_config(&self) -> anyhow::Result<String> {
        let socket = self.redis().join("redis.sock");
        let (listen, url) = if socket.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
            let listen = format!("port 0\nunixsocket {}\nunixsocketperm 700\n", quoted(&socket)?);
            (listen, format!("unix://{}", socket.display()))
        } else {
            let port = free_port()?;
            let password = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
            (
                format!("bind 127.0.0.1\nport {port}\nrequirepass {password}\n"),
                format!("redis://:{password}@127.0.0.1:{port}/0"),
            )
        };
        let text = format!(
            "# Written by bananas-broker dev at each start.\n{listen}dir {}\npidfile {}\nlogfile {}\n\
             appendonly yes\nappendfsync everysec\nsave \"\"\nmaxmemory-policy noeviction\ndatabases 1\ndaemonize no\n",
            quoted(&self.redis())?,
            quoted(&self.pid_file())?,
            quoted(&self.log())?,
        );
        fs::write(self.config(), text).context("cannot write redis.conf")?;
        Ok(url)
    }
}

/// A path quoted for redis.conf.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .context("the path of the data directory must be valid UTF-8")?;
    if text.contains(char::is_control) {
        bail!("the path of the data directory contains a control character");
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_broker_on_the_same_directory_is_refused_until_the_first_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let first = Directory::open(&root.path().join("a b/dev")).unwrap();
        let refused = Directory::open(&root.path().join("a b/dev")).unwrap_err().to_string();
        assert!(
            refused.contains(&std::process::id().to_string()) && refused.contains("--data-dir"),
            "{refused}"
        );
        drop(first);
        Directory::open(&root.path().join("a b/dev")).unwrap();
    }

    #[test]
    fn a_path_too_long_for_a_socket_gets_a_port_with_a_password() {
        let root = tempfile::tempdir().unwrap();
        let short = Directory::open(root.path()).unwrap().write_config().unwrap();
        assert!(short.starts_with("unix:///"), "{short}");
        let long = Directory::open(&root.path().join("x".repeat(120)))
            .unwrap()
            .write_config()
            .unwrap();
        assert!(long.starts_with("redis://:"), "{long}");
    }
}
