//! A proxy in front of Redis that plants a bug: it replaces one fragment of one script without the broker's knowledge.
//! The tests have to notice it.
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A running proxy. It ends when the value is dropped.
#[derive(Debug)]
pub struct MutantProxy {
    port: u16,
    bug: Arc<Bug>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Bug {
    redis_port: u16,
    fragment: &'static str,
    replacement: &'static str,
    /// The hash of a script to the hash of the one that runs instead.
    diverted: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    calls: AtomicU64,
}

impl MutantProxy {
    /// Starts one that replaces this fragment in every script that has it.
    pub async fn start(redis_port: u16, fragment: &'static str, replacement: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be had");
        let port = listener.local_addr().expect("a listener has an address").port();
        let bug = Arc::new(Bug {
            redis_port,
            fragment,
            replacement,
            diverted: Mutex::default(),
            calls: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&bug)));
        Self { port, bug, accepting }
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How often the script with the bug ran.
    pub fn calls(&self) -> u64 {
        self.bug.calls.load(Ordering::Relaxed)
    }
}

impl Drop for MutantProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, bug: Arc<Bug>) {
    while let Ok((client, _)) = listener.accept().await {
        let bug = Arc::clone(&bug);
        tokio::spawn(async move {
            // A broken connection needs no error: both sides see its end.
            let _ = serve(client, &bug).await;
        });
    }
}

async fn serve(client: TcpStream, bug: &Bug) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", bug.redis_port)).await?;
    let (client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let requests = async {
        let mut requests = BufReader::new(client_read);
        loop {
            let mut command = read_command(&mut requests).await?;
            bug.plant(&mut command).await;
            server_write.write_all(&encode(&command)).await?;
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = tokio::io::copy(&mut server_read, &mut client_write) => ended.map(drop),
    }
}

impl Bug {
    async fn plant(&self, command: &mut [Vec<u8>]) {
        match command {
            [script, load, text] if script == b"SCRIPT" && load == b"LOAD" => self.load(text).await,
            [evalsha, hash, ..] if evalsha == b"EVALSHA" => {
                if let Some(diverted) = self
                    .diverted
                    .lock()
                    .expect("nobody panics with the lock held")
                    .get(hash)
                {
                    hash.clone_from(diverted);
                    self.calls.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }

    /// Loads the script with the bug beside the original, so that the reply is the one that the broker expects.
    async fn load(&self, text: &[u8]) {
        let text = std::str::from_utf8(text).expect("scripts are text");
        if !text.contains(self.fragment) {
            return;
        }
        let mutant = redis::Script::new(&text.replace(self.fragment, self.replacement));
        let client =
            redis::Client::open(format!("redis://127.0.0.1:{}", self.redis_port)).expect("a well-formed address");
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .expect("Redis takes connections");
        mutant
            .load_async(&mut connection)
            .await
            .expect("the script with the bug is still Lua");
        let hashes = [redis::Script::new(text).get_hash().into(), mutant.get_hash().into()];
        let [original, diverted]: [Vec<u8>; 2] = hashes;
        self.diverted
            .lock()
            .expect("nobody panics with the lock held")
            .insert(original, diverted);
    }
}

/// A command as clients send them: an array of strings.
async fn read_command(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<Vec<u8>>> {
    let count = read_length(from, b'*').await?;
    let mut command = Vec::with_capacity(count);
    for _ in 0..count {
        let mut argument = vec![0; read_length(from, b'$').await? + 2];
        from.read_exact(&mut argument).await?;
        argument.truncate(argument.len() - 2);
        command.push(argument);
    }
    Ok(command)
}

async fn read_length(from: &mut (impl AsyncBufRead + Unpin), kind: u8) -> io::Result<usize> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).await?;
    let digits = line
        .strip_prefix(&[kind])
        .and_then(|rest| std::str::from_utf8(rest).ok());
    digits
        .and_then(|digits| digits.trim_end().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn encode(command: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for argument in command {
        bytes.extend(format!("${}\r\n", argument.len()).into_bytes());
        bytes.extend(argument);
        bytes.extend(b"\r\n");
    }
    bytes
}
