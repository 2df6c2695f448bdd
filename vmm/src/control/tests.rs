use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use super::clients::{CLIENTS_MAX, WAITING_MAX};
use super::*;
use crate::node::{Ended, EventKind, NodeEvent, Role, testing};

/// A served socket in a directory of its own.
fn served() -> (tempfile::TempDir, PathBuf, ControlServer) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let server = serve(&path).unwrap();
    (directory, path, server)
}

fn serve(path: &Path) -> Result<ControlServer, ControlError> {
    ControlSocket::bind(path)?.serve(testing::unprotected())
}

fn assert_alive(path: &Path) {
    let status = status(path).unwrap();
    assert!(status.replication().is_none(), "{status:?}");
}

#[test]
fn requests_are_answered_and_denials_are_typed() {
    let (_directory, path, _server) = served();
    assert_alive(&path);
    let denied = request(&path, Request::Failover).unwrap_err();
    assert!(
        matches!(denied, ControlError::Denied(Denial::Unprotected)),
        "{denied:?}"
    );
    assert!(denied.to_string().contains("has no standby"), "{denied}");
    let events = events(&path, 0, Duration::ZERO).unwrap();
    let role = Role::Unprotected;
    assert_eq!(events[0].what, EventKind::RoleBegan { role });
}

#[test]
fn a_node_that_starts_is_said_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let node = testing::unprotected();
    let starting = crate::node::Standing::default();
    node.watch().set(starting);
    let _server = ControlSocket::bind(&path).unwrap().serve(node).unwrap();
    let denied = status(&path).unwrap_err();
    assert!(
        matches!(denied, ControlError::Denied(Denial::Starting)),
        "{denied:?}"
    );
}

#[test]
fn the_end_is_waited_for_and_not_for_ever() {
    let (_directory, path, server) = served();
    let soon = Duration::from_millis(20);
    let await_end = |path: &Path, patience| watch_end(path, patience)?.wait();
    assert!(!await_end(&path, soon).unwrap(), "it has not ended");
    let (waiting, at) = (path.clone(), Instant::now());
    let waiting = std::thread::spawn(move || await_end(&waiting, Duration::from_secs(60)));
    request(&path, Request::Stop).unwrap();
    assert!(waiting.join().unwrap().unwrap(), "it has ended");
    assert!(at.elapsed() < Duration::from_secs(30), "it was polled for");
    drop(server);
    assert!(await_end(&path, soon).is_err(), "nobody is there");
}

#[test]
fn events_are_waited_for_and_the_last_one_is_heard_although_the_program_ends() {
    let (_directory, path, server) = served();
    let soon = Duration::from_millis(20);
    assert_eq!(events(&path, 1, soon).unwrap(), [], "nothing has happened");
    let (mut waiting, at) = (UnixStream::connect(&path).unwrap(), Instant::now());
    let question = b"{\"request\":{\"events\":{\"after\":1,\"patience_ms\":60000}}}\n";
    waiting.write_all(question).unwrap();
    // Comes after it, so that it is being served when the program ends.
    request(&path, Request::Stop).unwrap();
    drop(server);
    let mut line = String::new();
    BufReader::new(waiting).read_line(&mut line).unwrap();
    let AnswerKind::Ok(heard) = serde_json::from_str::<Answer>(&line).unwrap().what else {
        panic!("no events: {line}");
    };
    let heard: Vec<NodeEvent> = serde_json::from_value(heard).unwrap();
    assert_eq!(heard[0].what, EventKind::Ended(Ended::Stopped));
    assert!(at.elapsed() < Duration::from_secs(30), "it was polled for");
}

#[test]
fn an_answer_of_another_version_is_said_to_be_one() {
    for (answer, needed) in [
        (r#"{"ok":{"role":"primary"}}"#, "from before versions"),
        (r#"{"version":99,"ok":{}}"#, "version 99"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{answer}").unwrap();
            let _ = stream.read(&mut [0; 100]);
        });
        let error = status(&path).unwrap_err().to_string();
        assert!(error.contains("of another version"), "{error}");
        assert!(error.contains(needed), "{error}");
        serving.join().unwrap();
    }
}

#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    drop(UnixListener::bind(&path).unwrap());
    let _server = serve(&path).unwrap();
    let error = serve(&path).unwrap_err().to_string();
    assert!(error.contains("in use by a running vmm"), "{error}");
    assert_alive(&path);
}

#[test]
fn garbage_gets_an_error_and_the_server_lives_on() {
    let (_directory, path, _server) = served();
    for garbage in [
        "\n",
        "{\"request\":\"fly\"}\n",
        "{\"command\":\"status\"}\n",
        "{\"request\":\"status\",\"x\":1}\n",
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(garbage.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let expected = "{\"version\":3,\"error\":\"not a request";
        assert!(line.starts_with(expected), "{line}");
    }
    assert_alive(&path);
}

#[test]
fn nobody_there_is_named() {
    let error = status(Path::new("/nonexistent/control"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/control"), "{error}");
}

#[test]
fn silent_and_dripping_clients_keep_nobody_out() {
    let (_directory, path, _server) = served();
    let silent: Vec<_> = (0..CLIENTS_MAX + 5)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    (&silent[5]).write_all(b"{").unwrap();
    // Were they served one after the other, the question would wait for all of them.
    assert_alive(&path);
    // Who came first has lost its place, and only as many as were needed.
    let mut is_open = silent.into_iter().map(|mut stream| {
        stream.set_nonblocking(true).unwrap();
        let read = stream.read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    });
    assert!(is_open.by_ref().take(6).all(|open| !open));
    assert!(is_open.all(|open| open), "still being served");
}

#[test]
fn who_waits_keeps_nobody_from_asking() {
    let (_directory, path, _server) = served();
    let question = b"{\"request\":{\"await-end\":{\"patience_ms\":60000}}}\n";
    let mut waiting: Vec<_> = (0..WAITING_MAX + 2)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(question).unwrap();
            stream
        })
        .collect();
    // Two of them are one too many, whichever came last.
    let end = Instant::now() + Duration::from_secs(30);
    let mut denied = 0;
    while denied < 2 && Instant::now() < end {
        waiting.retain_mut(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut answer = [0; 100];
            let Ok(bytes) = stream.read(&mut answer) else {
                return true;
            };
            let answer = String::from_utf8_lossy(&answer[..bytes]);
            assert!(answer.contains("busy"), "{answer}");
            denied += 1;
            false
        });
    }
    assert_eq!((denied, waiting.len()), (2, WAITING_MAX));
    let _silent: Vec<_> = (0..CLIENTS_MAX)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    assert_alive(&path);
    request(&path, Request::Stop).unwrap();
    for mut stream in waiting {
        stream.set_nonblocking(false).unwrap();
        let mut answer = String::new();
        BufReader::new(&mut stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("\"ok\":true"), "{answer}");
    }
}

#[test]
fn the_socket_is_its_owners_alone_whatever_the_umask_says() {
    // The umask is the whole process', so this test has one of its own.
    const OWN_PROCESS: &str = "UNDERSTUDY_CONTROL_UMASK";
    let name = "control::tests::the_socket_is_its_owners_alone_whatever_the_umask_says";
    if std::env::var_os(OWN_PROCESS).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name]).env(OWN_PROCESS, "1");
        let output = again.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    for umask in [0, 0o777] {
        let directory = tempfile::tempdir().unwrap();
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        let path = directory.path().join("control");
        let _server = serve(&path).unwrap();
        let found = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(found & 0o777, 0o600, "umask {umask:o}");
        assert_alive(&path);
    }
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(matches!(error, ControlError::NoSocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}
