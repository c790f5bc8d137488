//! Encoded jobs. The task that enqueues a job encodes it once; batching, sending and retrying only pass the bytes on.

pub(crate) mod calls;
pub(crate) mod combine;

use bananas_proto::v1::JobSpec;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, message, skip_field},
};

/// Field number of `EnqueueRequest.job` and of `BatchEnqueueRequest.jobs`. It is the same, so one encoding fits both.
const JOB_FIELD: u32 = 1;
/// `BatchEnqueueRequest.atomic = true`.
const ATOMIC: &[u8] = &[2 << 3, 1];

/// A job as a field of a request: key, length, body.
pub(crate) fn encode_job(spec: &JobSpec) -> Bytes {
    let mut buffer = BytesMut::with_capacity(message::encoded_len(JOB_FIELD, spec));
    message::encode(JOB_FIELD, spec, &mut buffer);
    buffer.freeze()
}

/// The request for encoded jobs: `EnqueueRequest` or `BatchEnqueueRequest`.
#[derive(Debug, Clone, Default)]
pub(crate) struct EncodedJobs {
    parts: Vec<Bytes>,
    bytes: usize,
}

impl EncodedJobs {
    pub(crate) fn push(&mut self, job: Bytes) {
        self.bytes += job.len();
        self.parts.push(job);
    }

    pub(crate) fn set_atomic(&mut self) {
        self.push(Bytes::from_static(ATOMIC));
    }
}

impl FromIterator<Bytes> for EncodedJobs {
    fn from_iter<I: IntoIterator<Item = Bytes>>(jobs: I) -> Self {
        let parts: Vec<Bytes> = jobs.into_iter().collect();
        let bytes = parts.iter().map(Bytes::len).sum();
        Self { parts, bytes }
    }
}

impl Message for EncodedJobs {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        for part in &self.parts {
            buf.put_slice(part);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // Requests are only sent, never decoded.
        skip_field(wire_type, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.bytes
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use bananas_proto::v1::{BatchEnqueueRequest, EnqueueRequest};

    use super::*;

    #[test]
    fn encoded_jobs_are_the_requests_of_the_api() {
        let spec = JobSpec {
            routing_key: "q".into(),
            payload: vec![7; 300].into(),
            ..JobSpec::default()
        };
        let one = EncodedJobs::from_iter([encode_job(&spec)]);
        assert_eq!(
            one.encode_to_vec(),
            EnqueueRequest {
                job: Some(spec.clone())
            }
            .encode_to_vec()
        );

        let mut two = one;
        two.push(encode_job(&JobSpec::default()));
        two.set_atomic();
        let request = BatchEnqueueRequest {
            jobs: vec![spec, JobSpec::default()],
            atomic: true,
        };
        assert_eq!(two.encode_to_vec(), request.encode_to_vec());
    }
}
