//! Bytes to questions and answers to bytes. Whatever arrives, the result is a reply or silence.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

/// What fits through any path without fragments (DNS flag day 2020).
pub(crate) const MAX_UDP_PAYLOAD: u16 = 1232;
const CLASSIC_UDP_PAYLOAD: u16 = 512;
const HEADER: usize = 12;

/// What to do with a datagram or frame.
pub(crate) enum Incoming {
    /// Not a question: answering could start a loop between servers.
    Ignore,
    /// A question we can refuse without knowing anything.
    Reply(Vec<u8>),
    Question(Box<Question>),
}

/// One well-formed question.
pub(crate) struct Question {
    pub query: Query,
    message: Message,
}

pub(crate) fn parse(bytes: &[u8]) -> Incoming {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Incoming::Ignore };
    if header[2] & 0x80 != 0 {
        return Incoming::Ignore;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let Ok(message) = Message::from_vec(bytes) else {
        return Incoming::Reply(bare_error(id, ResponseCode::FormErr));
    };
    if message.metadata.message_type != MessageType::Query {
        return Incoming::Ignore;
    }
    let refuse = |code| Incoming::Reply(encode(&reply(&message, code), usize::from(CLASSIC_UDP_PAYLOAD)));
    if message.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(ResponseCode::BADVERS);
    }
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if transfer || !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return refuse(ResponseCode::Refused);
    }
    let query = query.clone();
    Incoming::Question(Box::new(Question { query, message }))
}

impl Question {
    /// A reply to it, without records yet.
    pub fn reply(&self, code: ResponseCode) -> Message {
        reply(&self.message, code)
    }

    pub fn recursion_desired(&self) -> bool {
        self.message.metadata.recursion_desired
    }

    /// The most bytes its sender takes in one datagram.
    pub fn payload_limit(&self) -> usize {
        let asked = self.message.edns.as_ref().map_or(CLASSIC_UDP_PAYLOAD, Edns::max_payload);
        usize::from(asked.clamp(CLASSIC_UDP_PAYLOAD, MAX_UDP_PAYLOAD))
    }
}

fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = request.metadata.checking_disabled;
    message.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_PAYLOAD);
        edns.set_rcode_high(u8::try_from(u16::from(code) >> 4).unwrap_or(0));
        message.set_edns(edns);
    }
    message
}

/// The message in at most `limit` bytes: cut down to its question, and marked so, if it is larger.
pub(crate) fn encode(message: &Message, limit: usize) -> Vec<u8> {
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit => bytes,
        Ok(_) => {
            let cut = message.truncate().to_vec();
            cut.unwrap_or_else(|_| bare_error(message.metadata.id, ResponseCode::ServFail))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot encode a DNS reply");
            bare_error(message.metadata.id, ResponseCode::ServFail)
        }
    }
}

/// A header and nothing else.
fn bare_error(id: u16, code: ResponseCode) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 0x80, 0x80 | code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}
