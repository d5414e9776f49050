//! Which engine plans ways, and where it is: as written, and checked.

use std::time::Duration;

use protocol::record::Vehicle;
use reqwest::Url;
use serde::{Deserialize, Serialize};

/// As written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterSettings {
    /// Who plans ways: `embedded` (our own map), `osrm` or `valhalla`. Our own map plans at once in any case; an engine's
    /// way takes its place when it comes.
    #[serde(rename = "type")]
    pub kind: RouterKind,
    /// How long an answer may take, tries included.
    pub timeout_ms: u32,
    /// Questions that may be under way at a time.
    pub asked_max: u32,
    pub osrm: OsrmSettings,
    pub valhalla: ValhallaSettings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    #[default]
    Embedded,
    Osrm,
    Valhalla,
}

/// One address per vehicle, the profile at its end, because a server of OSRM serves one. Empty: ways of such vehicles are
/// planned on our own map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OsrmSettings {
    pub car: String,
    pub moped: String,
    pub bicycle: String,
    pub foot: String,
}

/// A server's address, and the costing for each vehicle. Empty: ways of such vehicles are planned on our own map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValhallaSettings {
    pub url: String,
    pub car: String,
    pub moped: String,
    pub bicycle: String,
    pub foot: String,
}

impl Default for RouterSettings {
    fn default() -> Self {
        RouterSettings {
            kind: RouterKind::Embedded,
            timeout_ms: 2_000,
            asked_max: 4,
            osrm: OsrmSettings::default(),
            valhalla: ValhallaSettings::default(),
        }
    }
}

impl Default for OsrmSettings {
    fn default() -> Self {
        let car = "http://127.0.0.1:5000/route/v1/driving".to_owned();
        OsrmSettings { car, moped: String::new(), bicycle: String::new(), foot: String::new() }
    }
}

impl Default for ValhallaSettings {
    fn default() -> Self {
        ValhallaSettings {
            url: "http://127.0.0.1:8002".to_owned(),
            car: "auto".to_owned(),
            moped: "motor_scooter".to_owned(),
            bicycle: "bicycle".to_owned(),
            foot: "pedestrian".to_owned(),
        }
    }
}

/// Checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouterConfig {
    Embedded,
    Osrm(OsrmConfig),
    Valhalla(ValhallaConfig),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OsrmConfig {
    /// By [`vehicle_number`].
    pub(super) profiles: [Option<Url>; VEHICLES],
    pub(super) timeout: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValhallaConfig {
    pub(super) route: Url,
    pub(super) costings: [Option<String>; VEHICLES],
    pub(super) timeout: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouterConfigError {
    #[error("timeout_ms: 1 to 60000, not {0}")]
    Timeout(u32),
    #[error("asked_max: 1 to 256, not {0}")]
    AskedMax(u32),
    #[error("{key}: {url:?} is no address that begins with http:// or https://")]
    Url { key: &'static str, url: String },
    #[error("{key}: {name:?} is no name")]
    Name { key: &'static str, name: String },
    #[error("{0}: no vehicle is served")]
    Nobody(&'static str),
}

impl TryFrom<RouterSettings> for RouterConfig {
    type Error = RouterConfigError;

    fn try_from(settings: RouterSettings) -> Result<Self, RouterConfigError> {
        let timeout = match settings.timeout_ms {
            ms @ 1..=60_000 => Duration::from_millis(u64::from(ms)),
            ms => return Err(RouterConfigError::Timeout(ms)),
        };
        if !(1..=256).contains(&settings.asked_max) {
            return Err(RouterConfigError::AskedMax(settings.asked_max));
        }
        match settings.kind {
            RouterKind::Embedded => Ok(RouterConfig::Embedded),
            RouterKind::Osrm => {
                let OsrmSettings { car, moped, bicycle, foot } = settings.osrm;
                let profiles = [
                    profile("osrm.car", &car)?,
                    profile("osrm.moped", &moped)?,
                    profile("osrm.bicycle", &bicycle)?,
                    profile("osrm.foot", &foot)?,
                ];
                let is_any = profiles.iter().any(Option::is_some);
                is_any.then_some(()).ok_or(RouterConfigError::Nobody("osrm"))?;
                Ok(RouterConfig::Osrm(OsrmConfig { profiles, timeout }))
            }
            RouterKind::Valhalla => {
                let ValhallaSettings { url, car, moped, bicycle, foot } = settings.valhalla;
                let costings = [
                    costing("valhalla.car", car)?,
                    costing("valhalla.moped", moped)?,
                    costing("valhalla.bicycle", bicycle)?,
                    costing("valhalla.foot", foot)?,
                ];
                let is_any = costings.iter().any(Option::is_some);
                is_any.then_some(()).ok_or(RouterConfigError::Nobody("valhalla"))?;
                let route = address("valhalla.url", &format!("{}/route", url.trim_end_matches('/')))?;
                Ok(RouterConfig::Valhalla(ValhallaConfig { route, costings, timeout }))
            }
        }
    }
}

fn profile(key: &'static str, url: &str) -> Result<Option<Url>, RouterConfigError> {
    if url.is_empty() { Ok(None) } else { address(key, url.trim_end_matches('/')).map(Some) }
}

fn costing(key: &'static str, name: String) -> Result<Option<String>, RouterConfigError> {
    let is_name = name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match (is_name, name.is_empty()) {
        (true, true) => Ok(None),
        (true, false) => Ok(Some(name)),
        (false, _) => Err(RouterConfigError::Name { key, name }),
    }
}

/// Where questions go is said by what is appended, so nothing may stand behind the path.
fn address(key: &'static str, url: &str) -> Result<Url, RouterConfigError> {
    let wrong = || RouterConfigError::Url { key, url: url.to_owned() };
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let is_http = matches!(parsed.scheme(), "http" | "https") && parsed.has_host();
    (is_http && parsed.query().is_none() && parsed.fragment().is_none()).then_some(parsed).ok_or_else(wrong)
}

pub(super) fn vehicle_number(vehicle: Vehicle) -> usize {
    match vehicle {
        Vehicle::Car => 0,
        Vehicle::Moped => 1,
        Vehicle::Bicycle => 2,
        Vehicle::Foot => 3,
    }
}

pub(super) const VEHICLES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_plan_on_our_own_map_and_each_engine_can_be_named_alone() {
        let of = |kind| RouterConfig::try_from(RouterSettings { kind, ..RouterSettings::default() });

        assert_eq!(of(RouterKind::Embedded), Ok(RouterConfig::Embedded));
        assert!(matches!(of(RouterKind::Osrm), Ok(RouterConfig::Osrm(osrm)) if osrm.profiles[0].is_some()));
        let Ok(RouterConfig::Valhalla(valhalla)) = of(RouterKind::Valhalla) else { panic!("valhalla") };
        assert_eq!(valhalla.route.as_str(), "http://127.0.0.1:8002/route");
        assert_eq!(valhalla.costings[vehicle_number(Vehicle::Moped)].as_deref(), Some("motor_scooter"));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_when_the_settings_are_read() {
        for url in ["nonsense", "ftp://host/route", "http://", "http://host/route?x=1", "file:///etc/passwd"] {
            let osrm = OsrmSettings { car: url.to_owned(), ..OsrmSettings::default() };
            let settings = RouterSettings { kind: RouterKind::Osrm, osrm, ..RouterSettings::default() };
            assert!(matches!(RouterConfig::try_from(settings), Err(RouterConfigError::Url { .. })), "{url}");
        }
        let nobody = OsrmSettings { car: String::new(), ..OsrmSettings::default() };
        let settings = RouterSettings { kind: RouterKind::Osrm, osrm: nobody, ..RouterSettings::default() };
        assert_eq!(RouterConfig::try_from(settings), Err(RouterConfigError::Nobody("osrm")));
        let odd = ValhallaSettings { car: "auto\"}".to_owned(), ..ValhallaSettings::default() };
        let settings = RouterSettings { kind: RouterKind::Valhalla, valhalla: odd, ..RouterSettings::default() };
        assert!(matches!(RouterConfig::try_from(settings), Err(RouterConfigError::Name { .. })));
        let settings = RouterSettings { timeout_ms: 0, ..RouterSettings::default() };
        assert_eq!(RouterConfig::try_from(settings), Err(RouterConfigError::Timeout(0)));
    }
}
