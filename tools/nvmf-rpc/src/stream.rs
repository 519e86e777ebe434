//! Cutting a stream into JSON values. There is no framing: values follow each other with or without white space between them, and the
//! last one need not end with a line.
//!
//! Only objects and arrays are values here, which is all that JSON-RPC sends; they end where their brackets do, so each
//! byte is looked at once and nothing is parsed before it is whole. What is kept is bounded: never more than one value's limit and
//! what one read brought beyond it.

use serde_json::Value;

/// What ends a stream: after either nobody can say where the next value begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A value would be longer than allowed.
    #[error("a message of more than {limit_bytes} bytes; send smaller ones")]
    TooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// Something that begins no object or array.
    #[error("{0:?} begins no JSON object or array; send JSON-RPC requests")]
    NoValue(char),
    /// The brackets are balanced, but it is no JSON.
    #[error("no valid JSON: line {line}, column {column} of the message")]
    NoJson {
        /// In the value, from 1.
        line: usize,
        /// In the line, from 1.
        column: usize,
    },
}

/// Takes bytes as they come and hands out values.
#[derive(Debug)]
pub struct ValueStream {
    limit_bytes: usize,
    /// Bytes of the value that has begun, and what came after it.
    bytes: Vec<u8>,
    /// How many of them were looked at.
    scanned: usize,
    /// Open brackets.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ValueStream {
    /// A stream of values of at most `limit_bytes` each.
    pub fn new(limit_bytes: usize) -> Self {
        ValueStream {
            limit_bytes,
            bytes: Vec::new(),
            scanned: 0,
            depth: 0,
            in_string: false,
            escaped: false,
        }
    }

    /// Adds what was received. Take all values out with [`ValueStream::next_value`] before adding more.
    pub fn push(&mut self, received: &[u8]) {
        self.bytes.extend_from_slice(received);
    }

    /// Whether a value has begun and not ended.
    pub fn is_inside(&self) -> bool {
        self.depth > 0
    }

    /// The next value, or `None` until more bytes are there. After an error the stream is of no more use.
    pub fn next_value(&mut self) -> Result<Option<Value>, StreamError> {
        let Some(end) = self.find_end()? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice(&self.bytes[..end]);
        self.bytes.drain(..end);
        self.scanned = 0;
        parsed.map(Some).map_err(|error| StreamError::NoJson {
            line: error.line(),
            column: error.column(),
        })
    }

    /// Where the value that is first in `bytes` ends, if it does.
    fn find_end(&mut self) -> Result<Option<usize>, StreamError> {
        if self.depth == 0 {
            let white = |byte: &&u8| byte.is_ascii_whitespace();
            let skipped = self.bytes.iter().take_while(white).count();
            self.bytes.drain(..skipped);
            match self.bytes.first() {
                None => return Ok(None),
                Some(b'{' | b'[') => {}
                Some(byte) => return Err(StreamError::NoValue(char::from(*byte))),
            }
        }
        while let Some(byte) = self.bytes.get(self.scanned) {
            self.scanned += 1;
            if self.scanned > self.limit_bytes {
                return Err(StreamError::TooLong {
                    limit_bytes: self.limit_bytes,
                });
            }
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                // The first byte opened one, and the value ends when none is left.
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(self.scanned));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// All values of `text` when it arrives in pieces of `piece` bytes.
    fn values(text: &str, piece: usize) -> Result<Vec<Value>, StreamError> {
        let mut stream = ValueStream::new(100);
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            stream.push(bytes);
            while let Some(value) = stream.next_value()? {
                found.push(value);
            }
        }
        Ok(found)
    }

    #[test]
    fn values_are_found_whatever_the_pieces() {
        let text = " {\n  \"a\": \"}\\\"]{\"\n}[1,{\"b\":[]}]\r\n\t{} [ ]";
        let expected = [
            json!({"a": "}\"]{"}),
            json!([1, {"b": []}]),
            json!({}),
            json!([]),
        ];
        for piece in 1..text.len() {
            assert_eq!(values(text, piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn half_a_value_is_waited_for() {
        let mut stream = ValueStream::new(100);
        stream.push(b"{\"a\": [1, 2");
        assert_eq!(stream.next_value(), Ok(None));
        assert!(stream.is_inside());
        stream.push(b"]}");
        assert_eq!(stream.next_value(), Ok(Some(json!({"a": [1, 2]}))));
        assert!(!stream.is_inside());
    }

    #[test]
    fn what_is_no_value_ends_the_stream() {
        assert_eq!(values("{} hello", 3), Err(StreamError::NoValue('h')));
        assert_eq!(values("]", 1), Err(StreamError::NoValue(']')));
        assert_eq!(values("\"text\"", 9), Err(StreamError::NoValue('"')));
        assert_eq!(
            values("{\n\"a\" 1}", 9),
            Err(StreamError::NoJson { line: 2, column: 5 })
        );
        assert!(matches!(
            values("{\"a\": [1}]", 99),
            Err(StreamError::NoJson { .. })
        ));
    }

    #[test]
    fn a_value_is_bounded() {
        let fits = format!("[\"{}\"]", "x".repeat(96));
        assert_eq!(values(&fits, 7).unwrap().len(), 1);
        let long = format!("[\"{}\"]", "x".repeat(97));
        let error = StreamError::TooLong { limit_bytes: 100 };
        assert_eq!(values(&long, 7), Err(error));
        assert_eq!(values(&format!("{fits}{long}"), 50), Err(error));
        let deep = "[".repeat(101);
        assert_eq!(values(&deep, 101), Err(error));
    }

    #[test]
    fn nesting_is_bounded_by_the_parser() {
        let mut stream = ValueStream::new(1 << 20);
        stream.push("[".repeat(100_000).as_bytes());
        stream.push("]".repeat(100_000).as_bytes());
        assert!(matches!(
            stream.next_value(),
            Err(StreamError::NoJson { .. })
        ));
    }
}
