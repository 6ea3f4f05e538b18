//! How values are written on the command line.

use windlass::Reference;

/// Something that can name an image: a reference, or a digest. Their beginnings look like references, too.
pub(crate) fn image(text: &str) -> Result<String, windlass::reference::Error> {
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        Reference::parse(text)?;
    }
    Ok(text.to_owned())
}

/// A size in bytes, or with a unit: `500`, `20G`, `1.5GiB`. Units are powers of 1024, as we print them.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text[digits.len()..].trim().to_ascii_uppercase();
    let power = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("{unit} is no unit; use K, M, G or T")),
    };
    let number: f64 = digits.parse().map_err(|_| "write it as 500, 20G or 1.5GiB".to_owned())?;
    match number >= 0.0 && number.is_finite() {
        true => Ok((number * 1024_f64.powi(power)) as u64),
        false => Err("a size is not negative".to_owned()),
    }
}
