//! `wayfix restore`: says that a data folder is a restored copy. From inside, a whole folder that is an hour older looks
//! like any other; outside, phones hold sessions and customers hold links that were made since. So the incarnation rises,
//! every number jumps over all that can have been given since the copy was made, and sessions end.

use std::path::PathBuf;

use anyhow::{Result, bail};
use backends::installation::compare::Verdict;
use backends::installation::{Installation, Numbers, Raise};

use crate::installation::{Refused, acknowledged_before, unfinished};
use crate::repair::{self, Keys, KnownLog};
use crate::up;

#[derive(clap::Args)]
pub struct Options {
    /// A TOML file; every setting has a default.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The restored copy, where it is to be used.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let stores = repair::begin(options.config.as_deref(), options.data.as_deref())?;
    up::runtime()?.block_on(async {
        let folder = repair::open_folder(&stores)?;
        let survey = folder.survey()?;
        let after = match survey.compare() {
            Verdict::Fresh => bail!("{} holds no installation", stores.data.display()),
            Verdict::Adopt => Installation::new().raised(),
            Verdict::Together { installation, .. } => installation.raised(),
            Verdict::Unfinished { raise: raise @ Raise::Repair, .. } => bail!("{}", unfinished(&stores.data, raise)),
            Verdict::Unfinished { installation, findings, .. } if findings.is_empty() => installation,
            Verdict::Refused(findings) | Verdict::Unfinished { findings, .. } => {
                return Err(Refused { data: stores.data.clone(), findings }.into());
            }
        };
        let log = KnownLog::Through(acknowledged_before(&survey, after));
        let raise = (Raise::Restore, after);
        let opened = repair::go_on(folder, &stores, &survey, raise, log, Numbers::after_restore, Keys::Fleet).await?;
        drop(opened);
        println!("{} is a restored copy, and goes on as incarnation {}.", stores.data.display(), after.incarnation);
        println!("  Numbers of tenants, drivers, devices and deliveries go on far above those in the copy.");
        println!("  Phones start new sessions by themselves. A device that was revoked since the copy was made is");
        println!("  not revoked in it, and what was delivered since is not delivered in it: say so again.");
        Ok(())
    })
}
