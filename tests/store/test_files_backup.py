"""A folder of files that was copied while nobody used it: whole, and good to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import perdure
from tests.store.file_folders import bytes_of

MANIFEST = perdure.RunManifest("lab", perdure.AgentTaskSpec(id="letter", intent="write a letter"))


async def write(
    folder: Path, run_id: str, executed: list[str], *, breaks: bool = False
) -> str | None:
    """Run two steps on the store in `folder`; with `breaks`, fail between them."""
    store = await perdure.open_store(f"file:{folder}")

    async def letter(context: perdure.DurableContext) -> str:
        def say(word: str) -> str:
            executed.append(word)
            return word

        opening = await context.step("open", lambda: say("Dear ann"))
        if breaks:
            raise ConnectionError("the paper is away")
        closing = await context.step("close", lambda: say("Yours"))
        return f"{opening}. {closing}"

    try:
        done = await perdure.run_durable(store, run_id=run_id, manifest=MANIFEST, task=letter)
    except ConnectionError:
        return None
    finally:
        await store.close()
    return done.result


async def test_a_folder_that_was_put_back_is_the_one_that_was_copied(tmp_path: Path) -> None:
    folder, copy = tmp_path / "runs", tmp_path / "copy"
    await write(folder, "done", [])
    await write(folder, "broken", [], breaks=True)
    shutil.copytree(folder, copy)
    before = bytes_of(copy)
    await write(folder, "broken", [])
    await write(folder, "later", [])

    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    assert bytes_of(folder) == before
    executed: list[str] = []
    assert await write(folder, "done", executed) == "Dear ann. Yours"
    assert executed == []
    assert await write(folder, "broken", executed) == "Dear ann. Yours"
    assert executed == ["Yours"]
    store = await perdure.open_store(f"file:{folder}")
    assert {run.run_id for run in await store.list_runs()} == {"done", "broken"}
    assert await store.read_run("later") is None
    await store.close()
