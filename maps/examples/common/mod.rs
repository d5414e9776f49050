//! CPU time of this process: what a figure means on a machine that others use too.

/// Seconds, in steps of a hundredth; 0 where the system does not say.
pub fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or("");
    let field = |number: usize| after_name.split_whitespace().nth(number - 3).and_then(|text| text.parse::<f64>().ok());
    (field(14).unwrap_or(0.0) + field(15).unwrap_or(0.0)) / 100.0
}
