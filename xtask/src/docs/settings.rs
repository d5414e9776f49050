//! Every setting: its name, its type, its default and what its doc comment says.

#![expect(clippy::wildcard_enum_match_arm, reason = "the syntax of Rust is not our enum")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use syn::{
    Attribute, Expr, Field, Fields, GenericArgument, Item, ItemEnum, ItemStruct, Lit, Meta, PathArguments, Type,
};

use super::{cell, sources};

pub fn page(wayfix: &Path) -> Result<String> {
    let defaults = defaults(wayfix)?;
    let types = Types::read()?;
    let mut rows = Vec::new();
    types.walk("Settings", &crate::root().join("src/settings.rs"), &mut Vec::new(), &mut rows)?;
    for name in defaults.keys() {
        ensure!(rows.iter().any(|row| row.name == *name), "the setting {name} has no field that was found");
    }
    let mut page = String::from(HEAD);
    let mut section = None;
    for row in rows {
        let of = row.name.rsplit_once('.').map_or("", |(section, _)| section).to_string();
        if section.as_ref() != Some(&of) {
            let title = if of.is_empty() { String::from("At the top") } else { format!("`[{of}]`") };
            let _ =
                write!(page, "\n## {title}\n\n{}| key | type | default | what it is |\n|---|---|---|---|\n", row.above);
            section = Some(of);
        }
        let key = row.name.rsplit('.').next().unwrap_or_default();
        let default = defaults.get(&row.name).map_or_else(|| String::from("none"), |text| format!("`{}`", cell(text)));
        let _ = writeln!(page, "| `{key}` | {} | {default} | {} |", row.kind, cell(&row.doc));
    }
    Ok(page)
}

struct Row {
    name: String,
    kind: String,
    doc: String,
    /// What stands above the table of its section.
    above: String,
}

/// The types that settings are made of, by name; of several with one name the one in the same crate is meant.
struct Types {
    structs: BTreeMap<String, Vec<(PathBuf, ItemStruct)>>,
    enums: BTreeMap<String, Vec<(PathBuf, ItemEnum)>>,
}

impl Types {
    fn read() -> Result<Types> {
        let mut types = Types { structs: BTreeMap::new(), enums: BTreeMap::new() };
        for path in sources() {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let file = syn::parse_file(&text).with_context(|| format!("parse {}", path.display()))?;
            for item in file.items {
                match item {
                    Item::Struct(found) => {
                        types.structs.entry(found.ident.to_string()).or_default().push((path.clone(), found));
                    }
                    Item::Enum(found) => {
                        types.enums.entry(found.ident.to_string()).or_default().push((path.clone(), found));
                    }
                    _ => {}
                }
            }
        }
        Ok(types)
    }

    /// A row for each leaf below a struct, those of the struct itself before those of its sections.
    fn walk(&self, name: &str, from: &Path, place: &mut Vec<String>, rows: &mut Vec<Row>) -> Result<()> {
        let (path, found) = nearest(&self.structs, name, from).with_context(|| format!("find the struct {name}"))?;
        let Fields::Named(fields) = &found.fields else { anyhow::bail!("{name} has no named fields") };
        let above = doc_of(&found.attrs);
        let above = if above.is_empty() || place.is_empty() { String::new() } else { format!("{}\n\n", cell(&above)) };
        let (sections, leaves): (Vec<&Field>, Vec<&Field>) =
            fields.named.iter().partition(|field| self.is_section(&field.ty, path));
        for field in leaves {
            let mut name = place.clone();
            name.push(key_of(field));
            let kind = self.kind_of(&field.ty, path);
            rows.push(Row { name: name.join("."), kind, doc: doc_of(&field.attrs), above: above.clone() });
        }
        for field in sections {
            place.push(key_of(field));
            self.walk(&last_word(&field.ty), path, place, rows)?;
            place.pop();
        }
        Ok(())
    }

    /// Settings of a part, in a table of their own.
    fn is_section(&self, ty: &Type, from: &Path) -> bool {
        let name = last_word(ty);
        let is_settings = name.ends_with("Settings");
        is_settings
            && nearest(&self.structs, &name, from).is_some_and(|(_, found)| matches!(found.fields, Fields::Named(_)))
    }

    fn kind_of(&self, ty: &Type, from: &Path) -> String {
        let name = last_word(ty);
        if let Some(inner) = inner_of(ty, "Option") {
            return self.kind_of(inner, from);
        }
        if let Some(inner) = inner_of(ty, "Vec") {
            return format!("list of: {}", self.kind_of(inner, from));
        }
        if let Some((_, found)) = nearest(&self.enums, &name, from)
            && found.variants.iter().all(|variant| matches!(variant.fields, Fields::Unit))
        {
            let names: Vec<String> =
                found.variants.iter().map(|variant| format!("`{}`", snake(&variant.ident.to_string()))).collect();
            return names.join(", ");
        }
        match name.as_str() {
            "bool" => "true or false",
            "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => "whole number",
            "f64" => "number",
            "PathBuf" => "path",
            "SocketAddr" => "address and port",
            "IpAddr" => "address",
            _ => "text",
        }
        .to_string()
    }
}

fn nearest<'a, T>(
    types: &'a BTreeMap<String, Vec<(PathBuf, T)>>,
    name: &str,
    from: &Path,
) -> Option<(&'a Path, &'a T)> {
    let found = types.get(name)?;
    let crate_of =
        |path: &Path| path.strip_prefix(crate::root()).ok().and_then(|path| path.iter().next().map(Into::into));
    let near: Option<PathBuf> = crate_of(from);
    let same = found.iter().find(|(path, _)| crate_of(path) == near);
    same.or(found.first()).map(|(path, item)| (path.as_path(), item))
}

fn last_word(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default(),
        _ => String::new(),
    }
}

fn inner_of<'a>(ty: &'a Type, outer: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == outer)?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(inner) => Some(inner),
        _ => None,
    })
}

/// The key in the file: the field's name unless serde gives it another.
fn key_of(field: &Field) -> String {
    let mut name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
    for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("rename") {
                name = meta.value()?.parse::<syn::LitStr>()?.value();
            } else if meta.input.peek(syn::Token![=]) {
                let _: Expr = meta.value()?.parse()?;
            }
            Ok(())
        });
    }
    name
}

fn doc_of(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_string()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").trim().to_string()
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// What the binary prints, each value under its whole name.
fn defaults(wayfix: &Path) -> Result<BTreeMap<String, String>> {
    let shown = Command::new(wayfix).args(["config", "show"]).output().context("run wayfix config show")?;
    ensure!(shown.status.success(), "wayfix config show failed: {}", String::from_utf8_lossy(&shown.stderr));
    let table: toml::Table = String::from_utf8(shown.stdout)?.parse().context("read what config show prints")?;
    let mut flat = BTreeMap::new();
    let mut waiting = vec![(String::new(), table)];
    while let Some((place, table)) = waiting.pop() {
        for (key, value) in table {
            let name = if place.is_empty() { key } else { format!("{place}.{key}") };
            match value {
                toml::Value::Table(inner) => waiting.push((name, inner)),
                value => drop(flat.insert(name, value.to_string())),
            }
        }
    }
    Ok(flat)
}

const HEAD: &str = "# Settings

Made by `./x docs` from the settings' own doc comments; don't edit it here. `wayfix up --config FILE` takes a TOML file with these keys;
each can also be an environment variable, `WAYFIX__SECTION__KEY`. Every key has a default that works with no file and no service, a key
that is not known is an error, and `wayfix config check` says whether a file can be used.
";
