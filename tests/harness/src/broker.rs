//! A `bananas-broker serve` process that a test can kill, drain and start again. Its log is printed when the test
//! fails.
use std::{
    env,
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use tempfile::TempDir;

use crate::{
    api::Api,
    eventually::eventually,
    http, ports,
    program::binary,
    reaper,
    redis_server::{RedisServer, last_lines},
    signal,
};

/// How a broker is started.
#[derive(Debug, Clone, Default)]
pub struct BrokerOptions {
    /// Where its Redis is.
    pub redis_url: String,
    /// `section.key` and value, as for `--set`.
    pub settings: Vec<(&'static str, String)>,
}

impl BrokerOptions {
    /// A broker on that Redis. If Redis has no persistence, `redis.allow_unsafe` is set, or the broker would not start.
    pub fn on(redis: &RedisServer, settings: &[(&'static str, String)]) -> Self {
        let mut settings = settings.to_vec();
        if !redis.is_persistent() {
            settings.push(("redis.allow_unsafe", "true".into()));
        }
        Self {
            redis_url: redis.url(),
            settings,
        }
    }
}

/// A broker process. It is killed when the value is dropped.
#[derive(Debug)]
pub struct BrokerProcess {
    options: BrokerOptions,
    directory: TempDir,
    api_port: u16,
    http_port: u16,
    process: Option<Child>,
}

impl BrokerProcess {
    /// Starts one and waits until it is ready.
    pub async fn start(options: BrokerOptions) -> Self {
        let mut broker = Self::launched(options);
        broker.wait_ready().await;
        broker
    }

    /// Starts one and does not wait until it is ready.
    pub fn launched(options: BrokerOptions) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("bananas-test-broker-")
            .tempdir()
            .expect("a temporary directory");
        reaper::adopt_directory(directory.path());
        let (api_port, http_port) = (ports::free(), ports::free());
        let mut broker = Self {
            options,
            directory,
            api_port,
            http_port,
            process: None,
        };
        broker.launch();
        broker
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    /// The port of gRPC.
    pub fn api_port(&self) -> u16 {
        self.api_port
    }

    /// The port of /metrics, /livez and /readyz.
    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// Clients that are connected to it.
    pub fn api(&self) -> Api {
        Api::to(&self.endpoint())
    }

    /// Kills it with SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
            reaper::forget(process.id());
        }
    }

    /// Whether it was started and not killed since.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        signal::send(self.process.as_ref().expect("it runs").id(), name);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        let done = eventually("the broker ends", || {
            let done = process.try_wait().expect("a child can be waited for");
            async move { done }
        })
        .await;
        reaper::forget(process.id());
        done
    }

    /// Starts it again on the same ports, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.kill9();
        self.launch();
        self.wait_ready().await;
    }

    /// Waits until /readyz returns 200.
    pub async fn wait_ready(&mut self) {
        for attempt in 0.. {
            let port = self.http_port;
            let process = self.process.as_mut().expect("it was launched");
            let ready = eventually("the broker is ready, or ends", || {
                let ended = matches!(process.try_wait(), Ok(Some(_)));
                async move {
                    if ended {
                        return Some(false);
                    }
                    let (code, _) = http::get(port, "/readyz").await.ok()?;
                    (code == 200).then_some(true)
                }
            })
            .await;
            if ready {
                return;
            }
            let log = self.log();
            // Another process may have taken a port between the choice and the start.
            assert!(
                attempt < 5 && log.contains("in use"),
                "the broker ended at its start:\n{log}"
            );
            (self.api_port, self.http_port) = (ports::free(), ports::free());
            self.launch();
        }
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        last_lines(&self.log_path(), 60)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("broker.log")
    }

    fn launch(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .expect("the directory is writable");
        let mut command = Command::new(binary("bananas-broker"));
        command
            .arg("serve")
            .args(["--redis-url", &self.options.redis_url])
            .args(["--listen", &format!("127.0.0.1:{}", self.api_port)])
            .env("METRICS_PORT", self.http_port.to_string())
            .env(
                "LOG_LEVEL",
                env::var("BANANAS_TEST_LOG").unwrap_or_else(|_| "info".into()),
            )
            .current_dir(self.directory.path());
        for (key, value) in &self.options.settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be cloned"))
            .stderr(log)
            .spawn()
            .expect("the broker's binary can be run");
        reaper::adopt(process.id());
        self.process = Some(process);
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("-- log of the broker on port {}:\n{}", self.api_port, self.log());
        }
    }
}
