// What each status of an order means: a title, what has happened, and who did it.

export const FORWARD = ["placed", "reserved", "paid", "shipped", "confirmed"];
export const ENDS = ["confirmed", "rejected", "cancelled"];
export const UNDOING = ["recalling", "refunding", "releasing"];

export const WORDS = {
  placed: { title: "Placed", text: "written down and published in one transaction", who: "orders" },
  reserved: { title: "Reserved", text: "a piece is held", who: "inventory" },
  paid: { title: "Paid", text: "the bank was charged, once", who: "payments" },
  shipped: { title: "Shipped", text: "a parcel is booked", who: "shipping" },
  confirmed: { title: "Confirmed", text: "sold; points given, mail sent", who: "orders" },
  recalling: { title: "Calling the parcel back", text: "undoing, the last step first", who: "shipping" },
  refunding: { title: "Giving the money back", text: "a refund for a charge, and only one", who: "payments" },
  releasing: { title: "Putting it back", text: "what was held is free again", who: "inventory" },
  rejected: { title: "Rejected", text: "", who: "orders" },
  cancelled: { title: "Cancelled", text: "", who: "orders" },
};

export const DOING = { placed: "inventory", reserved: "payments", paid: "shipping", shipped: "inventory" };

/** How a status is coloured. */
export const tone = (status) =>
  status === "confirmed" ? "good" : status === "rejected" || status === "cancelled" ? "bad"
    : UNDOING.includes(status) ? "warn" : status ? "going" : "none";
