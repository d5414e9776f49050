//! For tests: a test runs itself again as a child process, which writes and says what was acknowledged until it is
//! killed with signal 9 in the middle of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the child is to write; None in the parent.
pub(crate) fn folder_of_child() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Said by the child for each thing acknowledged.
pub(crate) fn acknowledge(what: std::fmt::Arguments<'_>) {
    println!("{MARK}{what}");
}

/// Runs the test of this full name as a child that writes to `folder`, kills it once it has acknowledged `count`
/// things, and answers all that it acknowledged.
pub(crate) fn kill_in_the_middle(test: &str, folder: &Path, count: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("a test knows its own binary"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a test can start itself");
    let mut said = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    let mut acknowledged = Vec::new();
    let mut line = String::new();
    let mut is_killed = false;
    while said.read_line(&mut line).expect("it says text") > 0 {
        // The test harness writes in front of the first line; a line that was cut by the kill says nothing.
        if let (Some((_, what)), true) = (line.split_once(MARK), line.ends_with('\n')) {
            acknowledged.push(what.trim_end().to_string());
        }
        line.clear();
        if acknowledged.len() >= count && !is_killed {
            child.kill().expect("it can be killed");
            is_killed = true;
        }
    }
    let status = child.wait().expect("it ends");
    assert!(is_killed, "{test} ended by itself ({status}) after {} acknowledged writes", acknowledged.len());
    acknowledged
}

const FOLDER: &str = "WAYFIX_TEST_CRASH_FOLDER";
const MARK: &str = "acknowledged: ";
