//! Which kernel modules a list of names needs, in the order in which they load. The package has no
//! `modules.dep` (its scripts would make it), so the dependencies are read from the modules themselves. What
//! must not be done here: load them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::files_below;

/// The modules of one kernel.
pub(super) struct Modules {
    /// By name, with `_` for `-`.
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

impl Modules {
    /// Reads which there are in `lib/modules/VERSION`.
    pub(super) fn of(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for path in files_below(&directory.join("kernel"))? {
            if path.extension().is_some_and(|extension| extension == "ko") {
                files.insert(name_of(&path.to_string_lossy()), path);
            }
        }
        let builtin = fs::read_to_string(directory.join("modules.builtin"))
            .context("the kernel's package has no modules.builtin")?;
        let builtin = builtin.lines().map(name_of).collect();
        Ok(Self { files, builtin })
    }

    /// Whether the kernel has it, as a module or built in.
    pub(super) fn has(&self, name: &str) -> bool {
        let name = name_of(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// The files of a module and of what it needs, those it needs first. Empty if it is built in.
    pub(super) fn order(&self, name: &str) -> Result<Vec<&Path>> {
        let mut order = Vec::new();
        self.add(&name_of(name), &mut order)?;
        Ok(order)
    }

    fn add<'a>(&'a self, name: &str, order: &mut Vec<&'a Path>) -> Result<()> {
        let Some(file) = self.files.get(name) else {
            anyhow::ensure!(
                self.builtin.iter().any(|builtin| builtin == name),
                "the kernel has no module {name}"
            );
            return Ok(());
        };
        if order.contains(&file.as_path()) {
            return Ok(());
        }
        for needed in needs(&fs::read(file)?) {
            self.add(&name_of(&needed), order)?;
        }
        order.push(file);
        Ok(())
    }
}

/// `kernel/fs/ext4/ext4.ko` is `ext4`; `-` and `_` are the same in names of modules.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.trim_end_matches(".ko").replace('-', "_")
}

/// What a module says it needs: `depends=a,b` in its list of zero-terminated strings.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &str)]) -> (PathBuf, Modules) {
        let directory = std::env::temp_dir().join(format!(
            "understudy-modules-{}-{}",
            std::process::id(),
            modules.len()
        ));
        let below = directory.join("kernel/drivers");
        fs::create_dir_all(&below).unwrap();
        for (name, depends) in modules {
            let text = format!("license=GPL\0depends={depends}\0retpoline=Y\0");
            fs::write(below.join(name), text).unwrap();
        }
        fs::write(
            directory.join("modules.builtin"),
            "kernel/lib/crc-itu-t.ko\n",
        )
        .unwrap();
        let found = Modules::of(&directory).unwrap();
        (directory, found)
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let (directory, modules) = kernel(&[
            ("virtio-top.ko", "left,right"),
            ("left.ko", "bottom"),
            ("right.ko", "bottom,crc-itu-t"),
            ("bottom.ko", ""),
        ]);
        let order: Vec<_> = modules
            .order("virtio_top")
            .unwrap()
            .iter()
            .map(|path| name_of(&path.to_string_lossy()))
            .collect();
        assert_eq!(order, ["bottom", "left", "right", "virtio_top"]);
        assert!(modules.order("crc_itu_t").unwrap().is_empty());
        assert!(modules.has("crc-itu-t") && !modules.has("other"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_nowhere_is_named() {
        let (directory, modules) = kernel(&[("top.ko", "gone")]);
        let error = modules.order("top").unwrap_err().to_string();
        assert_eq!(error, "the kernel has no module gone");
        fs::remove_dir_all(directory).unwrap();
    }
}
