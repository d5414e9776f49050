//! Writes `protocol/vectors/`. Run it only to begin a new version of the protocol: these bytes are a promise to every
//! phone in the field.

#[path = "../tests/golden/mod.rs"]
#[allow(dead_code, reason = "the test uses more of it")]
mod golden;

fn main() -> std::io::Result<()> {
    std::fs::create_dir_all(golden::folder())?;
    for (name, value) in golden::files() {
        std::fs::write(golden::folder().join(name), golden::text(&value))?;
        println!("wrote vectors/{name}");
    }
    Ok(())
}
