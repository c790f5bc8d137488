//! A redis-server process with its own port and directory, which a test can kill and start again on the same data.
use std::{
    ffi::OsString,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::{sync::OnceCell, time::Duration};

use crate::{eventually::eventually, ports, reaper};

/// How a Redis is started.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Append-only file with `appendfsync everysec`; without it nothing survives a restart.
    pub persistent: bool,
    /// More settings, as on the command line of redis-server without the dashes.
    pub settings: Vec<(String, String)>,
}

impl RedisOptions {
    /// No persistence, and these settings.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let settings = settings
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            settings: settings.collect(),
            ..Self::default()
        }
    }
}

/// The program that `REDIS_SERVER` names (for example valkey-server), else redis-server of the PATH.
pub fn program() -> OsString {
    std::env::var_os("REDIS_SERVER")
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| "redis-server".into())
}

/// A redis-server. It is killed when the value is dropped.
#[derive(Debug)]
pub struct RedisServer {
    options: RedisOptions,
    directory: TempDir,
    port: u16,
    process: Option<Child>,
}

static SHARED: OnceCell<RedisServer> = OnceCell::const_new();

impl RedisServer {
    /// One without persistence.
    pub async fn start() -> Self {
        Self::start_with(RedisOptions::default()).await
    }

    /// One without persistence, with these settings of redis-server.
    pub async fn start_set(settings: &[(&str, &str)]) -> Self {
        Self::start_with(RedisOptions::with(settings)).await
    }

    /// One for all tests of this program that cause no faults and use keys of their own.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// One with these options.
    pub async fn start_with(options: RedisOptions) -> Self {
        let directory = directory();
        reaper::adopt_directory(directory.path());
        let mut server = Self {
            options,
            directory,
            port: 0,
            process: None,
        };
        // Another process may take the port before redis-server does, which then ends.
        for _ in 0..5 {
            server.port = ports::free();
            if server.try_launch().await {
                return server;
            }
        }
        panic!("redis-server does not start; its log ends with:\n{}", server.log());
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Whether its data survive its end.
    pub fn is_persistent(&self) -> bool {
        self.options.persistent
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it with SIGKILL, as a crash does.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
            reaper::forget(process.id());
        }
    }

    /// Starts it again on the same port and data.
    pub async fn restart(&mut self) {
        self.kill9();
        for _ in 0..50 {
            if self.try_launch().await {
                return;
            }
        }
        panic!("redis-server does not start again; its log ends with:\n{}", self.log());
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// A new connection.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.url())
            .expect("the address is well formed")
            .get_multiplexed_async_connection_with_config(&patient())
            .await
            .expect("redis-server takes connections")
    }

    async fn try_launch(&mut self) -> bool {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .expect("the directory is writable");
        let mut command = Command::new(program());
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .arg("--dir")
            .arg(self.directory.path())
            .args([
                "--appendonly",
                if self.options.persistent { "yes" } else { "no" },
                "--appendfsync",
                "everysec",
            ]);
        for (name, value) in &self.options.settings {
            command.arg(format!("--{name}")).args(value.split(' '));
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be cloned"))
            .stderr(log)
            .spawn()
            .expect("redis-server is installed (make test installs it)");
        let pid = process.id();
        reaper::adopt(pid);
        self.process = Some(process);
        let url = self.url();
        eventually("redis-server answers, or ends", || {
            let ended = self
                .process
                .as_mut()
                .is_some_and(|process| matches!(process.try_wait(), Ok(Some(_))));
            let url = url.clone();
            async move {
                if ended {
                    return Some(false);
                }
                (answering_process(&url).await? == pid).then_some(true)
            }
        })
        .await
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.directory.path().join("redis.log")
    }

    fn log(&self) -> String {
        last_lines(&self.log_path(), 20)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The default timeouts of the client are too short for a busy machine.
fn patient() -> redis::AsyncConnectionConfig {
    redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(10)))
        .set_response_timeout(Some(Duration::from_secs(20)))
}

/// In memory where there is such a file system: on a slow disk redis-server defers writes, and a kill loses
/// acknowledged writes, which is a property of Redis that these tests are not about.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("bananas-test-redis-");
        builder
    };
    builder()
        .tempdir_in(memory)
        .or_else(|_| builder().tempdir())
        .expect("a temporary directory can be made")
}

/// The process id of the server on that port, once it has loaded its data.
async fn answering_process(url: &str) -> Option<u32> {
    let client = redis::Client::open(url).ok()?;
    let connect = client.get_multiplexed_async_connection();
    let mut connection = tokio::time::timeout(Duration::from_secs(1), connect).await.ok()?.ok()?;
    redis::cmd("PING").query_async::<String>(&mut connection).await.ok()?;
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut connection)
        .await
        .ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
}

/// The last lines of a log.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
