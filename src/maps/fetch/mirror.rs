//! A mirror of OpenStreetMap extracts, in Geofabrik's layout: `REGION-latest.osm.pbf` with its checksum beside it, and
//! an index of all regions.

use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::checksum::Checksum;
use super::{FetchError, unreachable};

pub struct Mirror {
    /// Ends with a slash.
    base: Url,
}

/// An extract that a mirror has.
pub struct Extract {
    /// As in the mirror's paths: europe/portugal.
    pub region: String,
    pub url: Url,
    /// Whose speed limits hold, where the mirror's index had to be asked and says it of one country.
    pub country: Option<String>,
}

impl Mirror {
    /// None: not an address of the web.
    pub fn at(address: &str) -> Option<Mirror> {
        let mut base = Url::parse(address.trim()).ok()?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return None;
        }
        base.set_path(&format!("{}/", base.path().trim_end_matches('/')));
        Some(Mirror { base })
    }

    /// By its path, or by a name that the mirror's index has once.
    pub async fn find(&self, client: &Client, region: &str) -> Result<Extract, FetchError> {
        let url = self.url_of(region)?;
        let answer = client.head(url.clone()).send().await.map_err(|error| unreachable(&url, error))?;
        let is_there = match answer.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => false,
            // Whoever answers no questions may still send the file.
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
            status if status.is_success() => true,
            status => return Err(FetchError::Status { url: url.to_string(), status }),
        };
        if is_there {
            return Ok(Extract { region: region.to_owned(), url, country: None });
        }
        let known = self.index(client).await;
        let mut named = known.iter().filter(|one| one.is_called(region));
        match (named.next(), named.next()) {
            (Some(one), None) => {
                let url = self.url_of(&one.path)?;
                Ok(Extract { region: one.path.clone(), url, country: one.country.clone() })
            }
            _ => Err(FetchError::NoRegion {
                region: region.to_owned(),
                url: url.to_string(),
                near: near(&known, region),
            }),
        }
    }

    fn url_of(&self, region: &str) -> Result<Url, FetchError> {
        let is_plain =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if !region.split('/').all(is_plain) {
            return Err(FetchError::RegionName { region: region.to_owned() });
        }
        let path = format!("{region}{ENDING}");
        self.base.join(&path).map_err(|_| FetchError::RegionName { region: region.to_owned() })
    }

    /// What the mirror says an extract's checksum is, the best that it has.
    pub async fn checksum(&self, client: &Client, extract: &Url) -> Result<Option<Checksum>, FetchError> {
        for ending in ["sha256", "md5"] {
            let mut url = extract.clone();
            url.set_path(&format!("{}.{ending}", extract.path()));
            let answer = client.get(url.clone()).send().await.map_err(|error| unreachable(&url, error))?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => continue,
                status => return Err(FetchError::Status { url: url.to_string(), status }),
            }
            let bytes = body(answer, CHECKSUM_BYTES_MAX).await.map_err(|error| unreachable(&url, error))?;
            let checksum = Checksum::read(&String::from_utf8_lossy(&bytes))
                .ok_or(FetchError::NoChecksumInFile { url: url.to_string() })?;
            return Ok(Some(checksum));
        }
        Ok(None)
    }

    /// Empty where the mirror has none: it only helps those who misspelt.
    async fn index(&self, client: &Client) -> Vec<Known> {
        for name in ["index-v1-nogeom.json", "index-v1.json"] {
            let Ok(url) = self.base.join(name) else { continue };
            let Ok(answer) = client.get(url).send().await else { continue };
            let Ok(answer) = answer.error_for_status() else { continue };
            let Ok(bytes) = body(answer, INDEX_BYTES_MAX).await else { continue };
            if let Ok(index) = serde_json::from_slice::<Index>(&bytes) {
                return index.features.into_iter().filter_map(Known::of).collect();
            }
        }
        Vec::new()
    }
}

/// The beginning of what a server sends, however much that is.
async fn body(mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        bytes.extend_from_slice(&chunk[..chunk.len().min(bytes_max - bytes.len())]);
        if bytes.len() == bytes_max {
            break;
        }
    }
    Ok(bytes)
}

#[derive(Deserialize)]
struct Index {
    features: Vec<Feature>,
}

#[derive(Deserialize)]
struct Feature {
    properties: Properties,
}

#[derive(Deserialize)]
struct Properties {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    urls: Urls,
    #[serde(rename = "iso3166-1:alpha2", default)]
    countries: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Urls {
    #[serde(default)]
    pbf: String,
}

/// A region of the index.
struct Known {
    id: String,
    name: String,
    /// Under the mirror's base.
    path: String,
    country: Option<String>,
}

impl Known {
    /// The index names the first mirror's addresses; on any other the paths are the same.
    fn of(feature: Feature) -> Option<Known> {
        let Properties { id, name, urls, countries } = feature.properties;
        let url = Url::parse(&urls.pbf).ok()?;
        let path = url.path().trim_start_matches('/').strip_suffix(ENDING)?.to_owned();
        let country = match countries.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        };
        Some(Known { id, name, path, country })
    }

    fn is_called(&self, region: &str) -> bool {
        let last = self.path.rsplit('/').next().unwrap_or_default();
        [self.id.as_str(), self.name.as_str(), last].iter().any(|name| name.eq_ignore_ascii_case(region))
    }

    fn likeness(&self, region: &str) -> f64 {
        let region = region.to_lowercase();
        let last = region.rsplit('/').next().unwrap_or_default();
        let own = self.path.rsplit('/').next().unwrap_or_default();
        let names = [self.path.as_str(), own, self.id.as_str()];
        names
            .iter()
            .map(|name| strsim::jaro_winkler(name, &region).max(strsim::jaro_winkler(name, last)))
            .fold(0.0, f64::max)
    }
}

/// The names most like it, the likest first.
fn near(known: &[Known], region: &str) -> Vec<String> {
    let mut near: Vec<(f64, &str)> = known.iter().map(|one| (one.likeness(region), one.path.as_str())).collect();
    near.retain(|(likeness, _)| *likeness >= LIKENESS_MIN);
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.into_iter().take(NEAR_MAX).map(|(_, path)| path.to_owned()).collect()
}

const ENDING: &str = "-latest.osm.pbf";
const CHECKSUM_BYTES_MAX: usize = 1 << 10;
/// Geofabrik's, with every region's outline, is some 5 MB.
const INDEX_BYTES_MAX: usize = 64 << 20;
const LIKENESS_MIN: f64 = 0.85;
const NEAR_MAX: usize = 5;
