"""`mmchat history`: lists, shows, searches and deletes conversations."""

import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from mmchat.cli.output import confirm, json_option, say, say_json, say_table, yes_option
from mmchat.display.messages import RATINGS, author, clock, notes, picture_label, tag_words, title
from mmchat.display.numbers import format_size
from mmchat.history import History, Message

_limit = click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N"
)


@click.group()
def history() -> None:
    """List, show, search and delete your conversations.

    \b
    Example:
      mmchat history list
    """


@history.command("list")
@_limit
@click.option("--tag", metavar="TAG", help="Only conversations with this tag.")
@json_option
def list_(limit: int, tag: str | None, as_json: bool) -> None:
    """List the newest conversations; with --json, one object per line.

    \b
    Examples:
      mmchat history list --limit 5
      mmchat history list --tag birds
    """
    with History.open() as opened:
        found = opened.conversations(limit, tag=tag)
    if as_json:
        for one in found:
            say_json(asdict(one))
        return
    if not found:
        if tag is None:
            say("There is no conversation yet. Start one: mmchat")
        else:
            say("No conversation has this tag. To add a tag, use /tag in the app.")
        return
    now = time.time()
    rows = [
        (
            str(one.id),
            clock(one.updated, now),
            str(one.messages),
            f"{title(one)} {tag_words(one.tags)}".rstrip(),
        )
        for one in found
    ]
    say_table(rows, ("ID", "LAST", "MESSAGES", "TITLE"))


@history.command()
@click.argument("conversation_id", metavar="ID", type=int)
@json_option
def show(conversation_id: int, as_json: bool) -> None:
    """Show a conversation, from its first message to its last.

    \b
    Example:
      mmchat history show 12
    """
    with History.open() as opened:
        conversation = opened.conversation(conversation_id)
        branch = opened.branch(conversation_id)
    if as_json:
        data = asdict(conversation)
        data["messages"] = [asdict(message) for message in branch]
        say_json(data)
        return
    now = time.time()
    tags = f"  {tag_words(conversation.tags)}" if conversation.tags else ""
    say(f"{title(conversation)} (conversation {conversation.id}){tags}")
    if conversation.system:
        say(f"\nsystem\n{_indented(conversation.system)}")
    for message in branch:
        say(f"\n{_headline(message)} · {clock(message.created, now)}")
        for image in message.images:
            say(f"  [{picture_label(image.name, image.width, image.height)}]")
        if message.text:
            say(_indented(message.text))
        for _, sentence in notes(message):
            say(f"  ({sentence})")


def _headline(message: Message) -> str:
    origin = message.origin
    made_by = (origin.model, origin.adapter) if origin else ()
    rating = RATINGS[message.rating] if message.rating else ""
    return " · ".join(part for part in (author(message), *made_by, rating) if part)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.strip().split("\n"))


@history.command()
@click.argument("words", nargs=-1, required=True)
@_limit
@json_option
def search(words: Sequence[str], limit: int, as_json: bool) -> None:
    """Find messages by their words, best first.

    A message must have all the words. With --json, it prints one object per line. The last word may be incomplete. Symbols count: C++ does not find C.

    \b
    Examples:
      mmchat history search red kite
      mmchat history search "C++"
    """
    query = " ".join(words)
    if not query.strip():
        raise click.UsageError("Give at least one word to search for.")
    with History.open() as opened:
        hits = opened.search(query, limit)
    if as_json:
        for hit in hits:
            say_json(asdict(hit))
        return
    if not hits:
        say("Nothing was found.")
        return
    now = time.time()
    rows = [
        (
            str(hit.conversation_id),
            clock(hit.created, now),
            "you" if hit.role == "user" else "mmchat",
            hit.snippet,
        )
        for hit in hits
    ]
    say_table(rows, ("ID", "WHEN", "WHO", "TEXT"))


@history.command()
@click.argument("conversation_ids", metavar="ID...", type=int, nargs=-1, required=True)
@yes_option
def delete(conversation_ids: Sequence[int], yes: bool) -> None:
    """Delete conversations with their messages and pictures.

    \b
    Example:
      mmchat history delete 12 13
    """
    with History.open() as opened:
        found = [opened.conversation(one) for one in dict.fromkeys(conversation_ids)]
        lines = [f"{one.id}  {title(one)} ({one.messages} messages)" for one in found]
        if not (yes or confirm("Delete permanently?", lines)):
            return
        for one in found:
            opened.delete(one.id)
    say(f"Deleted: {', '.join(str(one.id) for one in found)}")


@history.command()
@json_option
def stats(as_json: bool) -> None:
    """Show the size of the history, and which models answered.

    \b
    Example:
      mmchat history stats
    """
    with History.open() as opened:
        figures = opened.stats()
    if as_json:
        say_json(figures)
        return
    models, tags = (
        ", ".join(f"{name} ({count})" for name, count in figures[what].items())
        for what in ("models", "tags")
    )
    counts = ((f"{figures[what]:,}", what) for what in ("good", "bad", "corrected"))
    feedback = ", ".join(f"{count} {what}" for count, what in counts)
    say_table(
        [
            ("conversations", f"{figures['conversations']:,}"),
            ("messages", f"{figures['messages']:,}"),
            ("pictures", f"{figures['images']:,} ({format_size(figures['image_bytes'])})"),
            ("answers by", models or "none"),
            ("feedback", feedback),
            ("tags", tags or "none"),
            ("file", f"{figures['file']} ({format_size(figures['file_bytes'])})"),
        ]
    )
