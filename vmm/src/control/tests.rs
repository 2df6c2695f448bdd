use super::*;

fn handler() -> Handler {
    Arc::new(|command| match command {
        Command::Status => Ok(serde_json::json!({"role": "primary"})),
        _ => Err("only a standby can be promoted".into()),
    })
}

#[test]
fn requests_are_answered_and_refusals_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let _server = ControlServer::start(&path, handler()).unwrap();
    assert_eq!(ask(&path, Command::Status).unwrap()["role"], "primary");
    let error = ask(&path, Command::Failover).unwrap_err().to_string();
    assert_eq!(error, "only a standby can be promoted");
}

#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    drop(UnixListener::bind(&path).unwrap());
    let _server = ControlServer::start(&path, handler()).unwrap();
    let error = ControlServer::start(&path, handler())
        .unwrap_err()
        .to_string();
    assert!(error.contains("in use by a running vmm"), "{error}");
    assert_eq!(ask(&path, Command::Status).unwrap()["role"], "primary");
}

#[test]
fn garbage_gets_an_error_and_the_server_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let _server = ControlServer::start(&path, handler()).unwrap();
    for garbage in [
        "\n",
        "{\"command\":\"fly\"}\n",
        "{\"command\":\"status\",\"x\":1}\n",
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(garbage.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"error\":\"not a request"), "{line}");
    }
    assert!(ask(&path, Command::Status).is_ok());
}

#[test]
fn nobody_there_is_named() {
    let error = ask(Path::new("/nonexistent/control"), Command::Status)
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/control"), "{error}");
}
