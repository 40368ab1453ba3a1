namespace TileCache.Client
{
    /// <summary>A bad field of a request.</summary>
    public sealed class FieldViolation
    {
        internal FieldViolation(string field, string description)
        {
            Field = field;
            Description = description;
        }

        /// <summary>Its path, for example <c>tiles[3].key.zoom</c>.</summary>
        public string Field { get; }

        /// <summary>What is wrong with it, for people.</summary>
        public string Description { get; }
    }
}
