"""The service `notifications`. Two kinds of handler: those that decide whom to write what, in the database; and one
that then talks to the mail server, with no transaction open."""

from __future__ import annotations

from eventkeel import Retry, Service, Steps, Transaction
from shop.notifications import post
from shop.notifications.events import MailDue
from shop.orders.events import OrderStatusChanged
from shop.parts import schema_of
from shop.users.events import UserRegistered

# The mail server may be down for as long as it likes.
service = Service("notifications", schema=schema_of("shop.notifications"), retry=Retry(attempts=0, first=0.5, cap=5.0))

NEWS = {
    "confirmed": ("Your order {order_id} is on its way", "We have sent it. Thank you!"),
    "rejected": ("We cannot deliver your order {order_id}", "{reason}. If you have paid, you have your money back."),
    "cancelled": ("Your order {order_id} is cancelled", "If you have paid, you have your money back."),
}


@service.on(UserRegistered)
async def welcome(user: UserRegistered, tx: Transaction) -> None:
    tx.write("insert into addresses (user_id, name, email) values (:user_id, :name, :email)", user)
    text = f"Hello {user.name},\n\nit is good to have you here. Some points are on your account already."
    tx.publish(MailDue(mail_id=f"welcome {user.user_id}", to=user.email, subject="Welcome", text=text))


@service.on(OrderStatusChanged)
async def follow_order(order: OrderStatusChanged, tx: Transaction) -> None:
    """Customers hear of the ends only."""
    if order.status not in NEWS:
        return
    name, address = await _address(order.user_id, tx)
    subject, text = (each.format(order_id=order.order_id, reason=order.reason) for each in NEWS[order.status])
    mail_id = f"order {order.order_id} {order.sequence}"
    tx.publish(MailDue(mail_id=mail_id, to=address, subject=subject, text=f"Hello {name},\n\n{text}"))


async def _address(user_id: str, tx: Transaction) -> tuple[str, str]:
    """Whoever buys without having registered can be reached at the shop."""
    row = await tx.fetch_one("select name, email from addresses where user_id = :user_id", {"user_id": user_id})
    return (row[0], row[1]) if row else (user_id, "counter@shop.example")


@service.on(MailDue)
async def send(mail: MailDue, steps: Steps) -> None:
    """A crash right after the mail has left sends it again, under the same Message-ID, by which mailboxes know it."""
    await steps.run("send", post.send, mail.to, mail.subject, mail.text, steps.key("send"))
    async with steps.transaction() as tx:
        tx.write('insert into mails (mail_id, "to", subject) values (:mail_id, :to, :subject)', mail)
