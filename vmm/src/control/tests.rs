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

#[test]
fn silent_and_dripping_clients_keep_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let _server = ControlServer::start(&path, handler()).unwrap();
    let silent: Vec<_> = (0..CLIENTS_MAX - 1)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    (&silent[0]).write_all(b"{").unwrap();
    let answered = std::thread::spawn(move || ask(&path, Command::Status).unwrap());
    // Were they served one after the other, the question would wait for all of them.
    assert_eq!(answered.join().unwrap()["role"], "primary");
    for mut stream in silent {
        stream.set_nonblocking(true).unwrap();
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "still being served");
    }
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let error = ControlServer::start(&path, handler()).unwrap_err();
    assert!(matches!(error, ControlError::NoSocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}
