//! A redis-server for the tests of this binary: on a unix socket in a directory of its own, gone when the binary ends, however it ends.

use std::{
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Starts redis-server (or the program that REDIS_SERVER names) and kills it when its own input ends, which is when this process is gone.
const KEEPER: &str = r#""${REDIS_SERVER:-redis-server}" "$@" >/dev/null 2>&1 & child=$!; cat >/dev/null; kill -9 $child; rm -rf "$DIRECTORY""#;

/// How long a redis-server may take to answer before something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// A redis-server of ours.
#[derive(Debug)]
pub(crate) struct RedisProcess {
    url: String,
    directory: TempDir,
    keeper: Child,
}

impl RedisProcess {
    /// One without persistence, with further settings as on the command line.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("bananas-store-")
            .tempdir()
            .expect("a temporary directory can be made");
        let socket = directory.path().join("redis.sock");
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", "--port", "0", "--save", "", "--appendonly", "no"])
            .args(["--maxmemory-policy", "noeviction", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(directory.path())
            .args(settings)
            .env("DIRECTORY", directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        let server = Self {
            url: format!("redis+unix://{}", socket.display()),
            directory,
            keeper,
        };
        let client = redis::Client::open(server.url()).expect("the address is well formed");
        let started = Instant::now();
        while client
            .get_connection()
            .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection))
            .is_err()
        {
            assert!(
                started.elapsed() < PATIENCE,
                "redis-server does not start (is it installed? make test installs it)"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// The one that all facts share.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<RedisProcess> = LazyLock::new(|| RedisProcess::start(&[]));
        &SHARED
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for RedisProcess {
    fn drop(&mut self) {
        // The end of its input ends the keeper, and the keeper ends the server.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        let _ = std::fs::remove_dir_all(self.directory.path());
    }
}
