//! `wayfix maps fetch`: an extract of a public mirror, checked against the checksum that the mirror publishes. It may be
//! broken off at any time and goes on where it stopped; the file appears under its name only when it is whole and right.

mod checksum;
mod mirror;
mod part;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use indicatif::ProgressBar;
use reqwest::{Client, StatusCode, Url};

use super::import;
use crate::output::Standard;
use crate::settings::{Settings, SettingsError};
use crate::up;
use checksum::Checksum;
use mirror::Extract;
pub use mirror::Mirror;
use part::{Begun, Part};

#[derive(clap::Args)]
pub struct Options {
    /// As the mirror calls it, as in europe/portugal; where only one has that name, the last part is enough.
    region: String,
    /// The file to make; the region's name with .osm.pbf if left out.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Instead of the one that is configured (maps.mirror); laid out as Geofabrik's.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How often a connection that broke is made again; what has come is kept.
    #[arg(long, default_value_t = 5, value_name = "N")]
    retries: u32,
    /// Takes the file too where the mirror publishes no checksum of it.
    #[arg(long)]
    unchecked: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{region} cannot be a region's name: it is a path like europe/portugal")]
    RegionName { region: String },
    #[error("the mirror has no region {region} ({url} is not there){}", suggestion(.near))]
    NoRegion { region: String, url: String, near: Vec<String> },
    #[error("{url} cannot be reached")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url} broke off")]
    Broken { url: String, source: reqwest::Error },
    #[error("{url} broke off after {found} of {expected} bytes")]
    CutShort { url: String, found: u64, expected: u64 },
    #[error("{url}: the mirror answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} holds no checksum")]
    NoChecksumInFile { url: String },
    #[error("the mirror publishes no checksum of {url} (.sha256 or .md5); --unchecked takes it all the same")]
    NoChecksum { url: String },
    #[error("what came is not what the mirror says it sent: {found}, not {published}; it was thrown away")]
    WrongChecksum { found: Checksum, published: Checksum },
    #[error("{path}: another download is writing it")]
    Busy { path: PathBuf },
    #[error("{path}: no space is left after {written} bytes; they are kept, so the same command goes on from there")]
    NoSpace { path: PathBuf, written: u64 },
    #[error("{path} cannot be written")]
    Disk { path: PathBuf, source: std::io::Error },
}

impl FetchError {
    /// Whether the same request may go better in a moment.
    fn is_transient(&self) -> bool {
        match self {
            FetchError::Broken { .. } | FetchError::CutShort { .. } => true,
            FetchError::Unreachable { source, .. } => source.is_timeout() || source.is_request(),
            FetchError::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            FetchError::RegionName { .. }
            | FetchError::NoRegion { .. }
            | FetchError::NoChecksumInFile { .. }
            | FetchError::NoChecksum { .. }
            | FetchError::WrongChecksum { .. }
            | FetchError::Busy { .. }
            | FetchError::NoSpace { .. }
            | FetchError::Disk { .. } => false,
        }
    }
}

fn suggestion(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

/// Before an answer it is the network, within one the connection.
fn unreachable(url: &Url, source: reqwest::Error) -> FetchError {
    let url = url.to_string();
    if source.is_body() || source.is_decode() {
        return FetchError::Broken { url, source: source.without_url() };
    }
    FetchError::Unreachable { url, source: source.without_url() }
}

pub fn run(options: &Options) -> Result<()> {
    let settings = Settings::load(options.config.as_deref())?;
    let address = options.mirror.as_deref().unwrap_or(&settings.maps.mirror);
    let mirror = Mirror::at(address).ok_or_else(|| SettingsError::Mirror(address.to_owned()))?;
    up::runtime()?.block_on(fetch(options, &mirror))
}

async fn fetch(options: &Options, mirror: &Mirror) -> Result<()> {
    let client = Client::builder()
        .user_agent(concat!("wayfix/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIME_MAX)
        .read_timeout(SILENCE_MAX)
        .build()?;
    let region = options.region.trim_matches('/').trim_end_matches(".osm.pbf").trim_end_matches("-latest");
    let extract = mirror.find(&client, region).await?;
    let published = mirror.checksum(&client, &extract.url).await?;
    if published.is_none() && !options.unchecked {
        return Err(FetchError::NoChecksum { url: extract.url.to_string() }.into());
    }
    let last = extract.region.rsplit('/').next().unwrap_or_default();
    let output = options.output.clone().unwrap_or_else(|| PathBuf::from(format!("{last}.osm.pbf")));
    if is_up_to_date(&output, published.as_ref()) {
        writeln!(Standard, "unchanged  {} is what the mirror has", output.display())?;
        return Ok(());
    }
    let mut part = Part::open(&output)?;
    let bar = super::bar("{msg:24} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")?;
    let downloaded = download(&client, &extract, published.as_ref(), &mut part, options.retries, &bar).await;
    bar.finish_and_clear();
    if let Err(error) = downloaded {
        let hint = if part.length() > 0 { "; the same command goes on where it stopped" } else { "" };
        return Err(anyhow::Error::from(error).context(format!("{} was not fetched{hint}", extract.region)));
    }
    let length = part.length();
    let checked = match published {
        Some(published) => Some(check(&client, mirror, &extract.url, &mut part, published).await),
        None => None,
    };
    let checksum = match checked {
        Some(Err(error)) => {
            part.discard();
            return Err(error.into());
        }
        Some(Ok(checksum)) => format!("{checksum}, as published"),
        None => String::from("not checked: the mirror publishes no checksum"),
    };
    part.finish(&output)?;
    writeln!(Standard, "wrote      {}, {:.1} MB, from {}", output.display(), length as f64 / 1e6, extract.url)?;
    writeln!(Standard, "checksum   {checksum}")?;
    writeln!(Standard, "next       {}", next(&output, extract.country.as_deref()))?;
    Ok(())
}

async fn download(
    client: &Client,
    extract: &Extract,
    published: Option<&Checksum>,
    part: &mut Part,
    retries: u32,
    bar: &ProgressBar,
) -> Result<(), FetchError> {
    bar.set_message(extract.region.clone());
    let mut failures = 0;
    loop {
        let before = part.length();
        let error = match part.download(client, &extract.url, published, bar).await {
            Ok(begun) => {
                tell(begun);
                return Ok(());
            }
            Err(error) => error,
        };
        if part.length() >= before + PROGRESS_BYTES_MIN {
            failures = 0;
        }
        if !error.is_transient() || failures >= retries {
            return Err(error);
        }
        let wait = WAIT_FIRST * 2_u32.pow(failures.min(5));
        bar.println(format!("{:#}; again in {} s", anyhow::Error::from(error), wait.as_secs()));
        failures += 1;
        tokio::time::sleep(wait).await;
    }
}

fn tell(begun: Begun) {
    match begun {
        Begun::Anew => {}
        Begun::GoneOn(bytes) => eprintln!("went on after the {bytes} bytes that were here"),
        Begun::AnewBecauseChanged => {
            eprintln!("began anew: the file at the mirror has changed, or the mirror sends no parts of files");
        }
    }
}

/// The file may have been replaced at the mirror while it was on its way, and its checksum with it.
async fn check(
    client: &Client,
    mirror: &Mirror,
    url: &Url,
    part: &mut Part,
    published: Checksum,
) -> Result<Checksum, FetchError> {
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| FetchError::Disk { path, source }
    };
    let bar = ProgressBar::new(part.length()).with_message("checksum");
    part.file.seek(SeekFrom::Start(0)).map_err(cannot(&part.path))?;
    let found = published.of(&part.file, |done| bar.set_position(done)).map_err(cannot(&part.path))?;
    bar.finish_and_clear();
    if found == published {
        return Ok(found);
    }
    match mirror.checksum(client, url).await? {
        Some(newer) if newer == found => Ok(found),
        _ => Err(FetchError::WrongChecksum { found, published }),
    }
}

fn is_up_to_date(output: &Path, published: Option<&Checksum>) -> bool {
    let Some((published, file)) = published.zip(File::open(output).ok()) else { return false };
    published.of(file, |_| {}).is_ok_and(|found| found == *published)
}

fn next(extract: &Path, country: Option<&str>) -> String {
    let name = extract.to_string_lossy();
    let stem = name.strip_suffix(".osm.pbf").or_else(|| name.strip_suffix(".pbf")).unwrap_or(&name);
    let country = country.filter(|country| import::knows_country(country));
    let country = country.map(|country| format!(" --country {country}")).unwrap_or_default();
    format!("wayfix maps import {name} -o {stem}.wfm{country}")
}

const CONNECT_TIME_MAX: Duration = Duration::from_secs(20);
/// A slow mirror is fine, a dead connection is not.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// Whoever gets on by so much has not failed.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_comes_next_names_a_country_only_where_import_knows_it() {
        let extract = Path::new("fixland-latest.osm.pbf");

        let next = [Some("PT"), Some("FX"), None].map(|country| next(extract, country));

        let plain = "wayfix maps import fixland-latest.osm.pbf -o fixland-latest.wfm";
        assert_eq!(next, [format!("{plain} --country PT"), plain.to_owned(), plain.to_owned()]);
    }
}
