//! Reads the lines of a file or of stdin in groups: a group is what has been read so far, without waiting for more.

use std::path::PathBuf;

use tokio::{
    fs::File,
    io::{AsyncBufRead, AsyncBufReadExt, BufReader, stdin},
    sync::mpsc,
};

use crate::exit::{Failure, Result};

/// The source of the lines.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Stdin,
    File(PathBuf),
}

/// A line without its line ending, and its number, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub number: u64,
    pub bytes: Vec<u8>,
}

const READ_AHEAD_LINES: usize = 4096;
const MAX_GROUP_LINES: usize = 1000;
const MAX_GROUP_BYTES: usize = 2 << 20;
const BUFFER_BYTES: usize = 256 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines that a task reads ahead.
#[derive(Debug)]
pub(super) struct Lines {
    queue: mpsc::Receiver<std::io::Result<Line>>,
    /// Name of the source, for errors.
    name: String,
}

impl Lines {
    /// Starts to read. `without_mark` removes a byte order mark at the start of the text.
    pub(super) async fn open(source: Source, without_mark: bool) -> Result<Self> {
        let name = match &source {
            Source::Stdin => "stdin".to_owned(),
            Source::File(path) => path.display().to_string(),
        };
        let (lines, queue) = mpsc::channel(READ_AHEAD_LINES);
        match source {
            Source::Stdin => {
                let read = read(BufReader::with_capacity(BUFFER_BYTES, stdin()), lines, without_mark);
                tokio::spawn(read)
            }
            Source::File(path) => {
                let file = File::open(&path)
                    .await
                    .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
                tokio::spawn(read(BufReader::with_capacity(BUFFER_BYTES, file), lines, without_mark))
            }
        };
        Ok(Self { queue, name })
    }

    /// The next group: at least one line, and further lines that have been read; empty at the end.
    pub(super) async fn next_group(&mut self) -> Result<Vec<Line>> {
        let mut group = Vec::new();
        let mut bytes = 0;
        let Some(first) = self.queue.recv().await else {
            return Ok(group);
        };
        let mut next = Some(self.read(first)?);
        while let Some(line) = next {
            bytes += line.bytes.len();
            group.push(line);
            if group.len() >= MAX_GROUP_LINES || bytes >= MAX_GROUP_BYTES {
                break;
            }
            next = match self.queue.try_recv() {
                Ok(line) => Some(self.read(line)?),
                Err(_) => None,
            };
        }
        Ok(group)
    }

    fn read(&self, line: std::io::Result<Line>) -> Result<Line> {
        line.map_err(|error| Failure::usage(format!("{}: {error}", self.name)))
    }
}

async fn read(mut input: impl AsyncBufRead + Unpin, lines: mpsc::Sender<std::io::Result<Line>>, without_mark: bool) {
    let mut number = 0;
    loop {
        let mut bytes = Vec::new();
        match input.read_until(b'\n', &mut bytes).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let _ = lines.send(Err(error)).await;
                return;
            }
        }
        number += 1;
        if number == 1 && without_mark && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        // An empty line is skipped but counted, so that the numbers match the file.
        if !bytes.is_empty() && lines.send(Ok(Line { number, bytes })).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_numbered_and_have_no_line_ending() {
        let (lines, mut queue) = mpsc::channel(10);
        read(&b"\xef\xbb\xbfa\n\r\n\nb\r\nlast"[..], lines, true).await;
        let mut seen = Vec::new();
        while let Some(line) = queue.recv().await {
            let line = line.unwrap();
            seen.push((line.number, String::from_utf8(line.bytes).unwrap()));
        }
        assert_eq!(seen, [(1, "a".to_owned()), (4, "b".to_owned()), (5, "last".to_owned())]);
    }
}
