//! That what is left over is found, whatever agents say of themselves.

use mobula_rig::Rig;

use super::driver::Outcome;

/// A file of spilled objects that lies on a node's disk though its agent knows of none.
pub fn a_file_that_no_agent_counts_is_found() -> Outcome {
    let mut rig = Rig::nodes(1).cpus(1.0).start()?;
    let file = rig.home(0)?.join("spill").join("7.spill");
    std::fs::write(&file, "left")?;
    let found = rig.emptied().map_err(|error| error.to_string());
    let named = file.display().to_string();
    assert!(found.as_ref().is_err_and(|found| found.contains(&named)), "no {named} in {found:?}");
    std::fs::remove_file(&file)?;
    rig.finish()?;
    Ok(())
}
