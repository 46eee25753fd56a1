//! One conversation with OVS's database: JSON-RPC 1.0 over its unix socket (RFC 7047, section 4).
//!
//! Messages follow each other without anything between them. One conversation for each operation: a connection
//! that idles would have to answer the server's echoes.

use std::{
    io::{self, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Deserializer, StreamDeserializer, Value, de::IoRead, json};

/// The database answers at once, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages of the server's own before the answer that is waited for.
const ASIDES: usize = 16;

type Messages = StreamDeserializer<'static, IoRead<BufReader<UnixStream>>, Value>;

pub(super) struct Session {
    stream: UnixStream,
    messages: Messages,
    last_id: u64,
}

impl Session {
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let messages = Deserializer::from_reader(BufReader::new(stream.try_clone()?)).into_iter();
        Ok(Self { stream, messages, last_id: 0 })
    }

    /// Does operations all together or not at all; the result of each.
    pub(super) fn transact(&mut self, operations: Vec<Value>) -> io::Result<Vec<Value>> {
        let count = operations.len();
        let mut params = vec![json!("Open_vSwitch")];
        params.extend(operations);
        let answer = self.call("transact", &Value::Array(params))?;
        results(answer, count).map_err(io::Error::other)
    }

    fn call(&mut self, method: &str, params: &Value) -> io::Result<Value> {
        self.last_id += 1;
        let request = json!({ "method": method, "params": params, "id": self.last_id });
        self.stream.write_all(request.to_string().as_bytes())?;
        for _ in 0..ASIDES {
            let message = match self.messages.next() {
                Some(message) => message?,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            if message["id"] == self.last_id {
                return match &message["error"] {
                    Value::Null => Ok(message["result"].clone()),
                    error => Err(io::Error::other(sentence(error))),
                };
            }
            // "Are you still there?"
            if message["method"] == "echo" {
                let answer = json!({ "result": message["params"], "error": null, "id": message["id"] });
                self.stream.write_all(answer.to_string().as_bytes())?;
            }
        }
        Err(io::Error::other("it talks about other things"))
    }
}

/// The results of a transaction. The first that failed is followed by nulls; a failure of the whole comes last.
fn results(answer: Value, count: usize) -> Result<Vec<Value>, String> {
    let Value::Array(results) = answer else { return Err("its answer is no list".to_owned()) };
    if let Some(failed) = results.iter().find(|result| !result["error"].is_null()) {
        return Err(sentence(failed));
    }
    if results.len() < count {
        return Err("its answer is too short".to_owned());
    }
    Ok(results)
}

/// `{"error": "constraint violation", "details": "..."}` in words.
fn sentence(error: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match (text(&error["error"]).or_else(|| text(error)), text(&error["details"])) {
        (Some(what), Some(why)) => format!("{what}: {why}"),
        (Some(what), None) => what,
        (None, _) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn a_failed_operation_is_told_in_words() {
        let answer = json!([{}, { "error": "constraint violation", "details": "br0 is there" }, null]);
        assert_eq!(results(answer, 2).unwrap_err(), "constraint violation: br0 is there");
        assert!(results(json!([{}]), 2).is_err());
        assert_eq!(results(json!([{}, { "count": 1 }]), 2).unwrap()[1]["count"], 1);
    }

    #[test]
    fn an_echo_is_answered_before_the_answer_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap();
            assert!(String::from_utf8_lossy(&buffer[..length]).contains("transact"));
            stream.write_all(br#"{"method":"echo","params":["x"],"id":"echo"}{"id":1,"#).unwrap();
            stream.write_all(br#""result":[{"count":1}],"error":null}"#).unwrap();
            let length = stream.read(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        let mut session = Session::open(&path).unwrap();
        assert_eq!(session.transact(vec![json!({ "op": "comment" })]).unwrap()[0]["count"], 1);
        let echoed = server.join().unwrap();
        assert!(echoed.contains(r#""result":["x"]"#), "{echoed}");
    }
}
