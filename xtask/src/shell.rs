//! Running other programs, aloud: every command is shown before it runs, and its failure is ours.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Says what comes, runs it, and says how long it took.
pub fn step(title: &str, command: &mut Command) -> Result<()> {
    eprintln!("── {title}: {}", words(command));
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("run {}", words(command)))?;
    if !status.success() {
        bail!("{title} failed ({status}): {}", words(command));
    }
    eprintln!("   {title}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// A cargo of the same toolchain, at the top of the checkout.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(crate::root());
    command
}

/// Where cargo puts what it builds.
pub fn target_dir() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), Into::into)
}

pub fn is_there(program: &str) -> bool {
    let probe = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// Installs Debian packages, saying so first. Fails where there is no apt-get.
pub fn apt_install(why: &str, packages: &[&str]) -> Result<()> {
    if !is_there("apt-get") {
        bail!("missing here: {why}. On Debian it is: apt-get install {}", packages.join(" "));
    }
    eprintln!("── installing with apt-get ({why}): {}", packages.join(" "));
    let mut update = as_root("apt-get");
    step("package lists", update.args(["update", "-qq"]))?;
    let mut install = as_root("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages).stdout(Stdio::null());
    step("packages", &mut install)
}

fn as_root(program: &str) -> Command {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt;
        meta.uid() == 0
    });
    if is_root || !is_there("sudo") {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program);
    command
}

/// Whether `output` was made after `input` last changed.
pub fn is_fresh(output: &Path, input: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified());
    match (modified(output), modified(input)) {
        (Ok(output), Ok(input)) => output >= input,
        _ => false,
    }
}

fn words(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let mut words = vec![name.to_string_lossy().into_owned()];
    // A script among the words is left out: it has lines of its own.
    let shown = |word: &std::ffi::OsStr| Some(word.to_string_lossy().into_owned()).filter(|word| !word.contains('\n'));
    words.extend(command.get_args().map(|word| shown(word).unwrap_or_else(|| String::from("…"))));
    words.join(" ")
}
