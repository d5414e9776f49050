//! The pages are embedded: a file that comes or goes must rebuild the binary.

fn main() {
    for folder in ["web", "web/assets", "web/vendor"] {
        if std::path::Path::new(folder).exists() {
            println!("cargo:rerun-if-changed={folder}");
        }
    }
    // The folder is made by fetching the packages; until then the binary is built without them.
    println!("cargo:rerun-if-changed=web/package-lock.json");
}
